"""A residual that is introduced by its scale instead of by chance (not in the paper)."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from policy_decorator.rl.auto import MeasuredExploration


class Schedule(Protocol):
    """Says epsilon: `decorator.ProgressiveExploration` by the step, `MeasuredExploration` by what it has measured."""

    @property
    def horizon(self) -> int | Literal["auto"]: ...
    def epsilon(self, step: int) -> float: ...


class Scaled(Protocol):
    """An actor all of whose answers are multiplied by `scale`."""

    scale: Tensor


@dataclass(frozen=True)
class ProgressiveScale:
    """Always open: epsilon multiplies the residual instead of choosing when it speaks.

    What is executed, learned about and evaluated is one policy, from the base itself (epsilon 0) to the full residual.
    A residual that speaks by chance seldom speaks in many decisions in a row, so that nobody learns what it does to a
    whole episode before it speaks in most of them.
    """

    schedule: Schedule
    actor: Scaled

    def __post_init__(self) -> None:
        self.actor.scale.fill_(self.epsilon(0))

    @property
    def horizon(self) -> int | Literal["auto"]:
        return self.schedule.horizon

    def epsilon(self, step: int) -> float:
        return self.schedule.epsilon(step)

    def __call__(self, step: int, episode_step: Tensor) -> Tensor:
        if isinstance(self.schedule, MeasuredExploration):
            self.schedule.advance(step, len(episode_step))
        epsilon = self.epsilon(step)
        self.actor.scale.fill_(epsilon)
        return torch.full(episode_step.shape, epsilon > 0, device=episode_step.device)

    def state(self) -> dict[str, Any]:
        return self.schedule.state() if isinstance(self.schedule, MeasuredExploration) else {}

    def restore(self, state: dict[str, Any]) -> None:
        if isinstance(self.schedule, MeasuredExploration):
            self.schedule.restore(state)
