"""The method's two settings without tuning: alpha from the demonstrations, and epsilon from measured success.

Not in the paper, which sets alpha "close to the action scale observed in the demonstration dataset" by hand
(Sec. 5.4.2) and H per task (Table 8).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.monitor import Monitor

BOUND_SHARE = 0.7
"""alpha as a share of the geometric mean that `bound_of` takes."""


def bound_of(d: Demonstrated) -> float:
    """alpha for these demonstrations and this base, (N,) rows of which are enough to say it.

    Between two scales, of which it takes the geometric mean: how much the demonstrated actions vary at all, since a
    residual of that size replaces the base; and how finely they are placed, below which it can correct nothing. The
    second is the larger of two: what changes by chance from one decision to the next, and what the base is off by.
    """
    action = d.action.flatten(1)
    spread = action.std(dim=0)
    episode = torch.arange(len(d.lengths), device=action.device).repeat_interleave(d.lengths)
    change = action.diff(dim=0)[episode[1:] == episode[:-1]].square().mean(dim=0).div(2).sqrt().nan_to_num()
    error = (action - d.base.flatten(1)).square().mean(dim=0).sqrt()
    fine = torch.maximum(change.mean(), error.mean())
    return BOUND_SHARE * (spread.mean() * fine).sqrt().item()


LEAST_VARIANCE = 0.05
"""Of a success, assumed of a base that was always or never seen to succeed."""


@dataclass
class MeasuredExploration:
    """epsilon grows while the training episodes succeed as often as the base's own did, and shrinks while they do not.

    The base's rate is that of its own episodes: it acts alone until `start`, and on until `episodes` of them have
    ended. It is compared with the latest `episodes` training episodes, and a shortfall within `tolerance` standard
    errors is taken for chance. Where there is a `penalty`, trust goes on after epsilon is 1, at the same pace: the
    penalty on the residual's size then falls to 0, and is the first to come back.
    """

    monitor: Monitor
    start: int
    """Environment steps in which the base acts alone."""
    opening_steps: int
    """Environment steps from 0 to 1 if nothing speaks against it, and back."""
    episodes: int = 25
    tolerance: float = 1.0
    penalty: Tensor | None = None
    """The learner's weight of the residual's size, in its memory; full until epsilon is 1."""
    base_rate: float | None = None
    trust: float = 0.0
    """0 to 1: epsilon; 1 to 2: how much of the penalty is gone."""
    at: int = 0
    """Environment steps up to which the measurements have been taken into account."""

    def __post_init__(self) -> None:
        self.full_penalty = None if self.penalty is None else self.penalty.clone()

    def epsilon(self, step: int) -> float:
        """As last decided: unlike a schedule's, it cannot be said for other steps."""
        return min(self.trust, 1.0)

    def __call__(self, step: int, episode_step: Tensor) -> Tensor:
        if step > self.at:
            self._measure(step)
            self.at = step
        return torch.rand(episode_step.shape, device=episode_step.device) < self.epsilon(step)

    def _measure(self, step: int) -> None:
        latest = list(self.monitor.recent)
        if self.base_rate is None:
            if step >= self.start and len(latest) >= self.episodes:
                self.base_rate = sum(latest) / len(latest)
            return
        rate = sum(latest[-self.episodes :]) / self.episodes
        spread = math.sqrt(max(self.base_rate * (1 - self.base_rate), LEAST_VARIANCE) / self.episodes)
        direction = 1 if rate >= self.base_rate - self.tolerance * spread else -1
        most = 1.0 if self.penalty is None else 2.0
        self.trust = min(max(self.trust + direction * (step - self.at) / self.opening_steps, 0.0), most)
        if self.penalty is not None and self.full_penalty is not None:
            torch.mul(self.full_penalty, min(2.0 - self.trust, 1.0), out=self.penalty)

    def state(self) -> dict[str, Any]:
        return {"base_rate": self.base_rate, "trust": self.trust, "at": self.at}

    def restore(self, state: dict[str, Any]) -> None:
        self.base_rate, self.trust, self.at = state["base_rate"], state["trust"], state["at"]
