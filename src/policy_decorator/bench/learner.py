"""One update, timed: ours, its sampling, the eager one, and the matrix products of this machine."""

import time
from collections.abc import Callable
from itertools import cycle
from typing import Literal, NamedTuple

import torch

from policy_decorator import machine
from policy_decorator.bench.config import BOUND, BenchConfig, Precision, device_of, learn_of, task_of
from policy_decorator.bench.eager import EagerSAC
from policy_decorator.bench.limit import product_rate, wait
from policy_decorator.decorator import Residual
from policy_decorator.rl.captured import WARM_UP, Captured
from policy_decorator.rl.compiled import Compiled
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.replay import Replay
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.types import Transition

BATCHES = 4
"""Different batches an update is timed on, in turns."""


class Question(NamedTuple):
    """What is to be timed, with how many threads and for how many seconds."""

    what: Literal["plain", "compiled", "captured", "sample", "product", "bytes by field"]
    threads: int = 1
    seconds: float = 0.0
    name: str = "float32"
    """The number format."""


def timed(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Seconds per call: the mean over at least three calls and `seconds`, after two that warm up."""
    for _ in range(2):
        call()
    wait(device)
    calls, start = 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - start < seconds:
        call()
        calls += 1
    wait(device)
    return (time.perf_counter() - start) / calls


def make_learner(obs: int, action: int, nets: NetConfig, sac: SACConfig, device: torch.device) -> SAC:
    """Our learner, as `methods.policy_decorator` builds it."""
    actor = TanhGaussian(obs, (1, action), nets).to(device)
    return SAC(actor, Critics(obs, action, nets).to(device), Residual(BOUND), action, sac)


def random_transitions(n: int, obs: int, action: int, device: torch.device) -> Transition:
    """Of a base that fails, with single actions."""
    obs_then = (torch.randn(n, obs, device=device) for _ in range(2))
    actions = (torch.rand(n, 1, action, device=device) * 2 - 1 for _ in range(3))
    ones = torch.ones(n, device=device)
    (now, then), (raw, base, next_base) = obs_then, actions
    return Transition(now, raw, base, -ones, 0 * ones, ones, then, next_base)


def full_replay(capacity: int, obs: int, action: int, device: torch.device) -> Replay:
    """Every row written, so that every page of it is memory of its own."""
    replay, block = Replay(capacity), random_transitions(min(capacity, 10_000), obs, action, device)
    while replay.size < capacity:
        rows = min(len(block.reward), capacity - replay.size)
        replay.add(Transition(*(x[:rows] for x in block)))
    return replay


class OurLearner:
    """Answers with seconds per call, or operations per second for a product."""

    def __init__(self, cfg: BenchConfig) -> None:
        self.cfg, self.device, task = cfg, device_of(cfg), task_of(cfg)
        machine.use_cpu_well(self.device)
        self.sizes = task.obs_size, task.action_size
        self.replay = full_replay(cfg.replay, *self.sizes, self.device)
        self.batches = cycle([self.replay.sample(cfg.batch_size) for _ in range(BATCHES)])
        self.updates: dict[tuple[str, str], Callable[[Transition], object]] = {}

    def _learner(self, precision: Precision) -> SAC:
        learn = learn_of(self.cfg, precision)
        return make_learner(*self.sizes, learn.nets, learn.sac, self.device)

    def __call__(self, q: Question) -> float | dict[str, int]:
        torch.set_num_threads(q.threads)
        cfg = self.cfg
        match q.what:
            case "bytes by field":
                return self.bytes_by_field()
            case "product":
                sizes = {"batch_size": cfg.batch_size, "width": cfg.width, "critics": cfg.critics}
                return product_rate(q.name, **sizes, device=self.device, seconds=q.seconds)
            case "sample":
                return timed(lambda: self.replay.sample(cfg.batch_size), q.seconds, self.device)
            case way:
                update = self.updates.get((way, q.name)) or self._make_update(way, q.name)
                return timed(lambda: update(next(self.batches)), q.seconds, self.device)

    def _make_update(self, way: str, name: str) -> Callable[[Transition], object]:
        """After the calls at which it is compiled and captured."""
        learner = self._learner(name)  # pyright: ignore[reportArgumentType]
        update = learner.update
        if way != "plain":
            update = compiled = Compiled(learner)
            update = Captured(learner, compiled.step) if way == "captured" else compiled
        self.updates[way, name] = update
        for _ in range(WARM_UP + 1):
            update(next(self.batches))
        return update

    def bytes_by_field(self) -> dict[str, int]:
        """Of one transition in the replay."""
        assert self.replay.data is not None
        return {name: x[0].numel() * x.element_size() for name, x in self.replay.data._asdict().items()}


class EagerLearner:
    """The eager update in a process with PyTorch's default settings: seconds per update."""

    def __init__(self, cfg: BenchConfig) -> None:
        self.device, task, learn = device_of(cfg), task_of(cfg), learn_of(cfg)
        sizes = task.obs_size, task.action_size
        self.batches = cycle([random_transitions(cfg.batch_size, *sizes, self.device) for _ in range(BATCHES)])
        self.learner = EagerSAC(*sizes, BOUND, learn.nets, learn.sac, str(self.device))

    def __call__(self, q: Question) -> float:
        torch.set_num_threads(q.threads)
        return timed(lambda: self.learner.update(next(self.batches)), q.seconds, self.device)
