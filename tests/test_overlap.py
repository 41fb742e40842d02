"""Updates while the environments step: the same counts as without, in an order that no clock decides."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policy_decorator import api
from policy_decorator.config import RefineConfig
from policy_decorator.decorator import ProgressiveExploration, Residual
from policy_decorator.envs.toy import TASKS, BiasedController, Reach
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.methods import METHODS, Problem, Run
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.rhythm import due
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.replay import NStep, Replay
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rollout import Collector
from policy_decorator.snapshot import capture
from policy_decorator.train import TrainConfig, train
from policy_decorator.types import Step, Transition

MakeConfig = Callable[..., RefineConfig]


def _nothing(*_: Any) -> None: ...


@dataclass
class Happened:
    """Environments, learner and explorer in one that write down what happens, in order."""

    env: Any = None
    events: list[str] = field(default_factory=list)
    updates: int = 0
    cfg: SACConfig = field(default_factory=lambda: SACConfig(batch_size=4))

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        return self.env.reset(seed)

    def step(self, action: Tensor) -> Step:
        raise AssertionError("environments that can be sent off were waited for")

    def send(self, action: Tensor) -> None:
        self.events.append("send")
        self.answer = self.env.step(action)

    def receive(self) -> Step:
        self.events.append("receive")
        return self.answer

    def __call__(self, seen: Tensor) -> Tensor:
        return torch.zeros(len(seen), 1, 2)

    def update(self, b: Transition) -> dict[str, Tensor]:
        self.updates += 1
        self.events.append("update")
        return {}

    state: Any = None
    restore: Any = None
    close: Any = None


def _idle_run(n: int, n_step: int = 1) -> tuple[Run, Happened]:
    """A run in which nothing is learned, so that every rhythm meets the same episodes."""
    happened, replay = Happened(Reach(n)), Replay(10_000)
    both: Any = happened
    torch.manual_seed(0)
    base = BiasedController(noise=0.0)
    collector = Collector(happened, base, Residual(0.1), ProgressiveExploration(10**9))
    return Run(collector, both, both, replay, NStep(n_step, 0.9), replay, Monitor(), base), happened


RHYTHMS = [
    (4, TrainConfig(total_steps=400, warmup_steps=100, steps_per_round=16, updates_per_step=0.25)),
    (4, TrainConfig(total_steps=203, warmup_steps=64, steps_per_round=7, updates_per_step=1.5)),
    (4, TrainConfig(total_steps=100, warmup_steps=0, steps_per_round=64, updates_per_step=0.1)),
    (5, TrainConfig(total_steps=333, warmup_steps=41, steps_per_round=32, updates_per_step=0.7)),
    (8, TrainConfig(total_steps=200, warmup_steps=50, steps_per_round=3, updates_per_step=0.5)),
    (4, TrainConfig(total_steps=60, warmup_steps=1000, steps_per_round=16, updates_per_step=1.0)),
]


@pytest.mark.parametrize(("n", "cfg"), RHYTHMS)
def test_every_count_is_that_of_a_run_without(n: int, cfg: TrainConfig) -> None:
    counts = []
    for overlap in (False, True):
        run, happened = _idle_run(n)
        train(replace(cfg, overlap=overlap), run, _nothing, _nothing, _nothing)
        c = run.collector
        counts.append((c.step, c.decisions, c.episodes, c.base_queries, happened.updates, run.replay.size))
        assert happened.updates == due(c.step, cfg.warmup_steps, cfg.updates_per_step)
    assert counts[0] == counts[1]


def _rounds(cfg: TrainConfig, n: int) -> list[list[str]]:
    """The events of each round."""
    run, happened = _idle_run(n)
    ends: list[int] = []
    every = replace(cfg, log_every=1)  # every round is logged
    train(every, run, lambda _: ends.append(len(happened.events)), _nothing, _nothing)
    return [happened.events[a:b] for a, b in pairwise([0, *ends])]


@pytest.mark.parametrize(("n", "cfg"), RHYTHMS)
def test_the_updates_of_a_round_are_made_during_the_decisions_of_the_next(n: int, cfg: TrainConfig) -> None:
    without, overlapped = _rounds(cfg, n), _rounds(replace(cfg, overlap=True), n)
    assert len(without) == len(overlapped)
    late = [events.count("update") for events in without]
    for k, events in enumerate(overlapped):
        decisions = " ".join(events).split("send ")[1:]
        assert len(decisions) == events.count("send") == without[k].count("send")
        made = [d.split("receive")[0].count("update") for d in decisions]
        after = " ".join(events).rsplit("receive", 1)[1].count("update")
        owed = late[k - 1] if k else 0
        assert max(made) - min(made) <= 1 + cfg.updates_per_step * n  # spread over the decisions
        if k < len(overlapped) - 1:
            assert (sum(made), after) == (owed, 0)  # one round late, all of them
        else:
            assert sum(made) <= owed  # the last round may be a shorter one,
            assert sum(made) + after == owed + late[k]  # and what is owed at the end is paid at once


def test_updates_wait_for_the_first_complete_return() -> None:
    run, happened = _idle_run(4, n_step=3)
    cfg = TrainConfig(total_steps=80, warmup_steps=0, steps_per_round=4, updates_per_step=1.0, overlap=True)
    train(cfg, run, _nothing, _nothing, _nothing)
    assert happened.updates == 80
    assert "update" not in happened.events[: happened.events.index("receive") + 1]


# ---- the same run every time ----------------------------------------------------------------------------------


def _trained(small: Config, base: Any, env: Any, overlap: bool, chunk: int = 1) -> dict[str, Any]:
    torch.manual_seed(3)
    try:
        run = METHODS["policy-decorator"].build(small, Problem(env, base, 4, (chunk, 2), 3000, 100))
        cfg = TrainConfig(total_steps=500, warmup_steps=100, steps_per_round=20, updates_per_step=0.3, overlap=overlap)
        train(cfg, run, _nothing, _nothing, _nothing)
        return capture(run)
    finally:
        env.close()


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("chunk", [1, 3])
def test_an_overlapped_run_is_the_same_whoever_steps_the_simulators(
    chunk: int, small: Config, noisy: nn.Module
) -> None:
    class Chunked:
        context = 1

        def act(self, window: Tensor) -> Tensor:
            base: Any = noisy
            return base.act(window).repeat(1, chunk, 1)

    def make(workers: int) -> SimulatorVector:
        return SimulatorVector(TASKS["toy/reach-gym"], 4, chunk=chunk, workers=workers)

    here, again, apart = (_trained(small, Chunked(), make(workers), True, chunk) for workers in (0, 0, 2))
    assert _same(here, again)
    assert _same(here, apart)
    assert not _same(here, _trained(small, Chunked(), make(0), False, chunk))  # another run than without overlap


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_overlapped_run_resumes_with_what_it_owed(
    workers: int, tmp_path: Path, make_config: MakeConfig, noisy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is saved for it: what is owed follows from steps and updates."""
    config = make_config("toy/reach-gym", total_steps=400, save_every=130, overlap=True, workers=workers)
    states = []
    for cut in (False, True):
        saved: list[int] = []

        def stop(run: Run, cut: bool = cut, saved: list[int] = saved) -> dict[str, Any]:
            state = capture(run)
            saved.append(state["updates"])
            if cut and len(saved) == 3:
                raise KeyboardInterrupt
            return state

        out = tmp_path / str(cut)
        monkeypatch.setattr(api.snapshot, "capture", stop)
        if cut:
            with pytest.raises(KeyboardInterrupt):
                api.run(config, noisy, out=out)
            assert saved[:2] == states[0][0][:2]
            assert saved[1] < due(260, 100, 0.25)  # something was owed
            monkeypatch.setattr(api.snapshot, "capture", capture)
        api.run(config, noisy, out=out, resume=cut)
        last = api.snapshot.read(out / "checkpoints" / "last.pt", torch.device("cpu"))
        states.append((saved, last, (out / "refined" / "residual.safetensors").read_bytes()))
    assert _same(states[0][1], states[1][1])
    assert states[0][2] == states[1][2]
