"""How cost grows with the work: environments, size of the base policy, batch, replay; one thing at a time."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from policy_decorator import machine
from policy_decorator.base_policies import build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.bench.child import Child
from policy_decorator.bench.config import BOUND, BenchConfig, Precision, device_of, learn_of, task_of
from policy_decorator.bench.learner import full_replay, make_learner, random_transitions, timed
from policy_decorator.bench.synthetic import SyntheticVector
from policy_decorator.decorator import ProgressiveExploration, Residual
from policy_decorator.progress import Display
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.nets import TanhGaussian
from policy_decorator.rollout import Collector

Row = dict[str, Any]
What = Literal["environments", "base parameters", "batch", "replay"]

LEAST_CALLS = 5  # of `timed`, warm-up included


@dataclass(frozen=True)
class Panel:
    """One thing that grows."""

    what: What
    sizes: tuple[int, ...]
    call: str
    """What takes the milliseconds."""
    counted: str
    """What there are so many of in a second."""


BASES: Mapping[int, tuple[int, int]] = {
    1_000_000: (144, 4),
    3_000_000: (256, 4),
    10_000_000: (456, 4),
    30_000_000: (784, 4),
    100_000_000: (1024, 8),
}
"""About so many parameters -> width and layers of a Behavior Transformer."""

PANELS = (
    Panel(
        "environments",
        (1, 4, 16, 64, 256, 1024, 4096),
        "one decision in all (no simulator, small MLP as base)",
        "decisions",
    ),
    Panel("base parameters", tuple(BASES), "one answer of a Behavior Transformer to all environments", "answers"),
    Panel("batch", (256, 512, 1024, 2048, 4096, 8192, 16384), "one update", "transitions"),
    Panel(
        "replay", (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000), "one batch from a full replay", "transitions"
    ),
)

COLUMNS = ("what", "size", "ms", "call", "per_s", "counted", "note")
"""`size` is what there was, which for base parameters is the exact number."""


class Question(NamedTuple):
    what: What
    size: int
    seconds: float


class Growing:
    """Answers with the exact size, the seconds of one call, and how much it counts for; then forgets what it made."""

    def __init__(self, cfg: BenchConfig, threads: int, precision: Precision) -> None:
        machine.use_cpu_well(device_of(cfg))
        torch.set_num_threads(threads)
        self.cfg, self.device, self.learn = cfg, device_of(cfg), learn_of(cfg, precision)
        self.sizes = task_of(cfg).obs_size, task_of(cfg).action_size

    def __call__(self, q: Question) -> tuple[int, float, int]:
        make = {
            "environments": self._environments,
            "base parameters": self._base,
            "batch": self._batch,
            "replay": self._replay,
        }[q.what]
        size, call = make(q.size)
        fixed = {"base parameters": self.cfg.envs, "replay": self.cfg.batch_size}
        return size, timed(call, q.seconds, self.device), fixed.get(q.what) or size

    def _environments(self, n: int) -> tuple[int, Callable[[], object]]:
        obs, action = self.sizes
        env, base = SyntheticVector(n, obs, device=self.device), build("mlp", obs, action, MLPConfig()).to(self.device)
        explorer = Explorer(TanhGaussian(obs, (1, action), self.learn.nets).to(self.device))
        collector = Collector(env, base, Residual(BOUND), ProgressiveExploration(0))
        return n, lambda: collector.decide(explorer)

    def _base(self, parameters: int) -> tuple[int, Callable[[], object]]:
        width, layers = BASES[parameters]
        base = build("bet", *self.sizes, BeTConfig(width=width, layers=layers)).to(self.device)
        window = torch.randn(self.cfg.envs, base.context, self.sizes[0], device=self.device)
        return sum(p.numel() for p in base.parameters()), lambda: base.act(window)

    def _batch(self, size: int) -> tuple[int, Callable[[], object]]:
        learner = make_learner(*self.sizes, self.learn.nets, self.learn.sac, self.device)
        batch = random_transitions(size, *self.sizes, self.device)
        return size, lambda: learner.update(batch)

    def _replay(self, capacity: int) -> tuple[int, Callable[[], object]]:
        replay = full_replay(capacity, *self.sizes, self.device)
        return capacity, lambda: replay.sample(self.cfg.batch_size)


def scale(
    cfg: BenchConfig, threads: int, precision: Precision, bytes_per_transition: int, display: Display, budget: float
) -> list[Row]:
    """A row for every size; those that would take longer than `budget` seconds a panel, or too much memory, say so."""
    rows: list[Row] = []
    with Child(Growing, cfg, threads, precision) as child:
        for panel in PANELS:
            room = int(0.6 * machine.available_memory() / bytes_per_transition) if panel.what == "replay" else None
            with display.stage(f"scaling: {panel.what}", len(panel.sizes)) as update:
                for row in panel_rows(panel, child.ask, budget, room):
                    if "note" in row:
                        display.say(f"{row['what']} {row['size']:,}: {row['note']}")
                    rows.append(row)
                    update(sum(r["what"] == panel.what for r in rows))
    return rows


def panel_rows(panel: Panel, ask: Callable[[Question], Any], budget: float, room: int | None) -> Iterator[Row]:
    """A row for every size, measured where it fits into what is left of `budget` seconds and into `room` rows."""
    end, seconds = time.monotonic() + budget, budget / (6 * len(panel.sizes))
    last = (1, 0.0)  # size, and seconds that it took with all of its making
    for size in panel.sizes:
        row: Row = {"what": panel.what, "size": size, "call": panel.call}
        left, expected = end - time.monotonic(), last[1] * size / last[0]
        if room is not None and size > room:
            row["note"] = f"left out: {room:,} transitions fill 60 % of the memory that is free"
        elif expected > left:
            row["note"] = f"left out: it would take about {expected:.0f} s, {left:.0f} s are left"
        else:
            before = time.monotonic()
            exact, took, counts = ask(Question(panel.what, size, seconds))
            row |= {"size": exact, "ms": 1000 * took, "per_s": counts / took, "counted": panel.counted}
            last = (size, max(LEAST_CALLS * took, time.monotonic() - before - seconds))
        yield row
