"""What each method costs, measured on a run of it.

    python -m policy_decorator.bench.methods --out results/methods-cost

The run is a real one with random weights; its environment costs next to nothing and its demonstrations are noise. So
costs are those of base policy, actor and learner (paper Table 15), and simulators come on top.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from policy_decorator import machine
from policy_decorator.base_policies import build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.diffusion import DiffusionConfig
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.bench.synthetic import SyntheticVector
from policy_decorator.disk import atomic_csv, atomic_json
from policy_decorator.errors import MissingExtra, UserError, lookup, or_exit
from policy_decorator.hardware import choose_device, name_of
from policy_decorator.methods import METHODS, Problem, Run
from policy_decorator.methods.dppo import Config as DPPO
from policy_decorator.methods.on_policy import OnPolicyConfig
from policy_decorator.methods.problem import Offline
from policy_decorator.progress import Bars
from policy_decorator.provenance import provenance
from policy_decorator.rhythm import due
from policy_decorator.rl.captured import WARM_UP
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.episodes import WholeEpisodes

TINY: Mapping[str, Mapping[str, Any]] = {
    "bet": {"layers": 1, "heads": 1, "width": 4, "clusters": 2},
    "mlp": {"width": 4},
    "diffusion": {"widths": (8, 8)},
}
BASES: Sequence[tuple[str, Any]] = (
    ("bet", BeTConfig()),
    ("bet", BeTConfig(bounded_offset=True)),
    ("mlp", MLPConfig()),
    ("diffusion", DiffusionConfig()),
)
"""Base policies of the paper's sizes and windows (Tables 4 and 6). A method is tried on them in this order: some tune
only certain ones."""
TINY_BASES: Sequence[tuple[str, Any]] = tuple((kind, replace(cfg, **TINY[kind])) for kind, cfg in BASES)


@dataclass(frozen=True)
class Sizes:
    """Defaults are those of Adroit Door and of the paper's Table 9; networks are each method's own."""

    obs: int = 39
    action: int = 28
    envs: int = 16
    steps_per_round: int = 16
    updates_per_step: float = 0.25
    capacity: int = 20_000
    episode: int = 300
    """Steps of an episode."""
    demonstrations: int = 25
    demonstration: int = 269
    """Steps of a demonstration: the mean of the 25 of DAPG."""
    bases: Sequence[tuple[str, Any]] = field(default_factory=lambda: BASES)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Of base policy and learner."""
    compiled: bool = False
    """Whether updates are compiled, where a run would do so."""


SMALL = Sizes(
    obs=4,
    action=2,
    envs=2,
    steps_per_round=16,
    capacity=64,
    episode=8,
    demonstrations=3,
    demonstration=10,
    bases=TINY_BASES,
)

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{f"{name} on the base": (name, {"actor": "base"}) for name in ("rlpd", "sacfd", "cal-ql", "cql")},
    "rot by LoRA": ("rot", {"learns": "lora"}),
    "sac-lora with GPT critics": ("sac-lora", {"critic": "gpt"}),
}
"""Measured besides every method as it is by default: what learns in the paper, and App. F.5.1's critics."""


def own_settings(name: str) -> Any:
    """The defaults of a method or variant."""
    method, changes = VARIANTS.get(name, (name, {}))
    return replace(METHODS[method].config(), **changes)


def in_short_rounds(cfg: Any) -> Any:
    """A method that learns in rounds of PPO, with the shortest whose minibatches are as large.

    Costs per update and updates per step stay as they are; DPPO's own round takes half an hour of a core. There are no
    first rounds of the value alone.
    """
    if not isinstance(cfg, OnPolicyConfig):
        return cfg
    parts = math.gcd(cfg.ppo.rollout, cfg.ppo.minibatches)
    ppo = replace(cfg.ppo, rollout=cfg.ppo.rollout // parts, minibatches=cfg.ppo.minibatches // parts)
    first = {"dppo": replace(cfg.dppo, critic_rounds=0)} if isinstance(cfg, DPPO) else {"critic_rounds": 0}
    return replace(cfg, ppo=ppo, **first)


def sample_run(name: str, sizes: Sizes = SMALL, settings: Any = None) -> tuple[str, Run]:
    """The first kind of base that the method or variant takes, and a run on it; `settings` replace its own.

    Raises:
        UserError: it takes none.
        MissingExtra: a library that it needs is not installed.
    """
    method = VARIANTS.get(name, (name,))[0]
    cfg = own_settings(name) if settings is None else settings
    refusals = []
    for kind, base_cfg in sizes.bases:
        torch.manual_seed(0)
        base: Any = build(kind, sizes.obs, sizes.action, base_cfg).to(sizes.device)
        episode: dict[str, Any] = {"max_steps": sizes.episode, "staggered": True, "succeeds": True}
        env = SyntheticVector(sizes.envs, sizes.obs, context=base.context, device=sizes.device, **episode)
        problem = Problem(
            env=env,
            base=base.eval().requires_grad_(False),
            obs_size=sizes.obs,
            chunk=(base.chunk, sizes.action),
            capacity=sizes.capacity,
            warmup_steps=0,
            device=sizes.device,
            compiled=sizes.compiled,
            cuda_graphs=sizes.device.type == "cuda",
            demonstrated=_demonstrated(sizes) if base.chunk == 1 else None,
        )
        try:
            return kind, METHODS[method].build(cfg, problem)
        except MissingExtra:
            raise
        except UserError as refusal:
            refusals.append(f"on {kind}: {refusal}")
    raise UserError(f"{name} cannot be built here. " + " ".join(refusals))


def _demonstrated(sizes: Sizes) -> Demonstrated:
    """Noise that succeeds at the end of every episode."""
    n = sizes.demonstrations * sizes.demonstration
    action = torch.rand(n, 1, sizes.action) * 2 - 1
    success = (torch.arange(n) + 1) % sizes.demonstration == 0
    lengths = torch.full((sizes.demonstrations,), sizes.demonstration)
    seen, action, success, lengths = (x.to(sizes.device) for x in (torch.randn(n, sizes.obs), action, success, lengths))
    return Demonstrated(seen, action, torch.zeros_like(action), success, lengths)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Costs:
    """Of one method on one base policy, in milliseconds.

    Updates are as PyTorch comes unless they are to be compiled. On a GPU they are replayed from CUDA graphs where a run
    would do so.
    """

    method: str
    base: str
    context: int
    """Frames that the base, and what is tuned of it, looks at."""
    learned_parameters: int
    """Of the actor alone."""
    acting_ms: float
    """Per environment step: base policy, actor, and what becomes of a decision (rewards of whole episodes, too)."""
    update_ms: float
    """Per update; of a discriminator's rounds, each update bears its part."""
    updates_per_step: float
    learning_ms: float
    """Per environment step."""
    total_ms: float
    """Per environment step, without the simulator."""
    base_queries_per_step: float
    offline_update_ms: float | None
    """Per update before the first step, where there are such."""


def costs(method: str, sizes: Sizes, seconds: float) -> Costs:
    """Measured for at least so many seconds, and from one update to another that is a whole number of rounds.

    Where whole episodes are rewarded, it is from the end of an episode to that of another: they end at equal distances.
    """
    kind, run = sample_run(method, sizes, in_short_rounds(own_settings(method)))
    collector, offline = run.collector, run.offline
    offline_ms = None if offline is None else 1000 * _offline(offline, seconds, sizes.device)
    offline_updates, whole = run.learner.updates, isinstance(run.intake, WholeEpisodes)
    if whole:  # those that the staggered rows begin with are shorter
        _act(run, sizes.envs * sizes.episode)
    first, acting, learning = collector.step, 0.0, 0.0
    counted, before, rounds = False, (0, 0, 0), 0
    # The first updates allocate, and a first rollout may have begun before; some are compiled, or recorded.
    warm_up = offline_updates + (4 * WARM_UP if sizes.device.type == "cuda" or sizes.compiled else 1)
    while not rounds or acting + learning < seconds:
        begun, updates, episodes = _now(sizes.device), run.learner.updates, collector.episodes
        _act(run, sizes.steps_per_round)
        acted = _now(sizes.device)
        run.learn(due(collector.step, first, sizes.updates_per_step))
        if counted:
            acting, learning = acting + acted - begun, learning + _now(sizes.device) - acted
        if run.learner.updates == updates or (whole and collector.episodes == episodes):
            continue
        if counted:
            rounds += 1
        elif run.learner.updates >= warm_up:
            counted, before = True, (collector.step, run.learner.updates, collector.base_queries)
    steps, updates, queries = (
        now - then
        for now, then in zip((collector.step, run.learner.updates, collector.base_queries), before, strict=True)
    )
    return Costs(
        method=method,
        base=kind,
        context=collector.base.context,
        learned_parameters=sum(p.numel() for p in run.learner.actor.parameters() if p.requires_grad),
        acting_ms=1000 * acting / steps,
        update_ms=1000 * learning / updates,
        updates_per_step=updates / steps,
        learning_ms=1000 * learning / steps,
        total_ms=1000 * (acting + learning) / steps,
        base_queries_per_step=queries / steps,
        offline_update_ms=offline_ms,
    )


def _act(run: Run, steps: int) -> None:
    """So many environment steps, and at least a decision; what becomes of them, too."""
    for _ in range(max(steps // run.collector.action[..., 0].numel(), 1)):
        transition, step = run.collector.decide(run.explorer)
        run.monitor.observe(transition, step)
        complete = run.intake.push(transition, step.done)
        if complete is not None:
            run.replay.add(complete)


def _offline(offline: Offline, seconds: float, device: torch.device) -> float:
    for _ in range(WARM_UP):
        offline.learn()
    begun, before = _now(device), offline.updates
    while _now(device) - begun < seconds and offline.updates < offline.total:
        offline.learn()
    return (_now(device) - begun) / (offline.updates - before)


@dataclass(frozen=True)
class CostsConfig:
    out: Path = Path("results/methods-cost")
    """Where costs.csv and provenance.json go."""
    methods: tuple[str, ...] = (*METHODS, *VARIANTS)
    seconds: float = 10.0
    """Of measuring, per method, at least."""
    threads: int = 1
    device: str = "cpu"
    """cpu, cuda, or auto: of base policy and learner."""
    compile: bool = False
    """Compile updates, as long runs do; half a minute to three per method."""


def main(cfg: CostsConfig) -> None:
    """Raises UserError: an unknown method, a device that is not there, a full disk."""
    device = choose_device(cfg.device)
    machine.use_cpu_well(device)
    torch.set_num_threads(cfg.threads)
    for name in cfg.methods:
        lookup("method", name, dict.fromkeys((*METHODS, *VARIANTS)))
    cfg.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with Bars().stage("measuring", len(cfg.methods)) as update:
        for i, name in enumerate(cfg.methods, start=1):
            rows.append(asdict(costs(name, Sizes(device=device, compiled=cfg.compile), cfg.seconds)))
            atomic_csv(cfg.out / "costs.csv", tuple(rows[0]), [list(row.values()) for row in rows])
            update(i, note=name)
    sizes = {name: value for name, value in asdict(Sizes()).items() if name not in ("bases", "device", "compiled")}
    about = {"sizes": sizes, "threads": cfg.threads, "seconds": cfg.seconds, "device": name_of(device)}
    about["compiled"] = cfg.compile
    record = {name: x for name, x in provenance(seed=0).items() if name != "argv"}
    atomic_json(cfg.out / "provenance.json", about | record)


if __name__ == "__main__":
    or_exit(lambda: main(tyro.cli(CostsConfig)))
