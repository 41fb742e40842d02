"""What a method is given and what it must hand to the training loop."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from policy_decorator.encoders import Shapes
from policy_decorator.errors import UserError
from policy_decorator.evaluation import Episodes
from policy_decorator.memory import AnyPolicy
from policy_decorator.rhythm import crosses
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.replay import DataSource, Replay
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rollout import Collector
from policy_decorator.types import Transition, VectorEnv


def _not_measured(hold: int) -> float:
    raise UserError("bound = tolerance is measured in episodes of the task, and here are none: give a number.")


@dataclass(frozen=True)
class Problem:
    """A task with a frozen base policy."""

    env: VectorEnv
    base: AnyPolicy
    obs_size: int
    """Of the state alone, where there are pictures too."""
    chunk: tuple[int, int]
    """(Ta, Da) of the base policy's actions."""
    capacity: int
    """Decisions the replay holds."""
    warmup_steps: int
    """Environment steps before the first update."""
    evaluations: int = 60
    """How often what is learned is evaluated in training; where nothing is said, as often as in the paper."""
    shapes: Shapes = field(default_factory=dict)
    """(C, H, W) of the pictures that the task shows."""
    seed: int = 0
    """Seed of the first training episode."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compiled: bool = False
    """Whether updates are compiled."""
    cuda_graphs: bool = False
    """Whether updates are replayed from CUDA graphs."""
    obs_statistics: tuple[Tensor, Tensor] | None = None
    """Mean and standard deviation (Do,) of the demonstrations' observations, where there are demonstrations."""

    demonstrated: Demonstrated | None = None
    """The demonstrations with the base's answers, for methods that learn from them."""
    tolerance: Callable[[int], float] = _not_measured
    """Plays episodes of the base, with noise held for so many decisions, until it knows `rl.tolerance`'s number."""

    @property
    def action_size(self) -> int:
        return math.prod(self.chunk)

    def demonstrations_for(self, method: str) -> Demonstrated:
        """Raises UserError: there are none."""
        if self.demonstrated is None or not len(self.demonstrated.lengths):
            raise UserError(f"{method} learns from demonstrations of the task: give some (--demos FILE, or demos=...).")
        return self.demonstrated


class Counting(Protocol):
    """Whatever makes updates and counts them."""

    updates: int

    def update(self, b: Transition) -> dict[str, Tensor]: ...


class Learner(Counting, Protocol):
    """What is updated. A snapshot keeps all of its attributes that are tensors or have a `state_dict`."""

    @property
    def actor(self) -> nn.Module: ...
    @property
    def critic(self) -> nn.Module: ...
    @property
    def cfg(self) -> SACConfig: ...


class Intake(Protocol):
    """What becomes of a decision before it is learned from."""

    def push(self, t: Transition, done: Tensor) -> Transition | None: ...  # what the replay is to keep
    def state(self) -> list[Any]: ...
    def restore(self, state: list[Any]) -> None: ...


@dataclass
class Offline:
    """Updates before the first environment step, counted apart from those that follow."""

    total: int
    learner: Counting
    """Learns the parts of the run's own learner and counts for itself."""
    data: DataSource
    batch_size: int
    update: Callable[[Transition], dict[str, Tensor]] | None = None
    """As in `Run`."""

    @property
    def updates(self) -> int:
        """Made so far."""
        return self.learner.updates

    def learn(self) -> dict[str, Tensor]:
        """One update."""
        return (self.update or self.learner.update)(self.data.sample(self.batch_size))

    def learn_all(
        self, log_every: int, save_every: int, log: Callable[[Mapping[str, Tensor]], None], save: Callable[[], None]
    ) -> None:
        """All updates that are left; `log_every` and `save_every` count updates here. Behind the last one the caller
        saves, when what was learned has been evaluated."""
        while self.updates < self.total:
            before, metrics = self.updates, self.learn()
            if crosses(before, self.updates, log_every) or self.updates >= self.total:
                log({f"offline/{name}": value for name, value in metrics.items()})
            if crosses(before, self.updates, save_every) and self.updates < self.total:
                save()


class Reward(Protocol):
    """A reward that is not the environment's and changes while it is used. A snapshot keeps its state."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Run:
    """The parts `train` needs."""

    collector: Collector
    learner: Learner
    explorer: Explorer
    replay: Replay
    intake: Intake
    data: DataSource
    monitor: Monitor
    policy: AnyPolicy
    """What is being learned, fully trusted: evaluated, saved and handed to the user."""
    update: Callable[[Transition], dict[str, Tensor]] | None = None
    """The learner's update compiled or replayed from CUDA graphs; None: as it is."""
    base_episodes: int = 1
    """Of the base at least, in its own evaluation before training."""
    evaluated: Callable[[Episodes], None] | None = None
    """Told of every evaluation during training, and of the base's own before it."""
    offline: Offline | None = None
    """What is learned from demonstrations before the first environment step; its policy needs no random warm-up."""
    reward: Reward | None = None
    """What the decisions are rewarded by; None: success."""
    shaped: Callable[[Transition], Transition] | None = None
    """Decisions of the collector as the rows of a batch are; None: they are the same."""
    knows: bool = False
    """Whether its actor acts itself from the first step on, without a random warm-up."""
    facts: Callable[[], dict[str, int]] | None = None
    """What metrics and summary say of this method beside what they say of all."""

    def learn(self, updates: int) -> None:
        """Gradient steps, each on a new batch, until `updates` have been made; none while there are no data."""
        update = self.update or self.learner.update
        while self.replay.size and self.learner.updates < updates:  # the first n-step returns take n decisions
            self.monitor.learning |= update(self.data.sample(self.learner.cfg.batch_size))
