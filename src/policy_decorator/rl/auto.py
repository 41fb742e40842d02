"""The method's two settings without tuning: alpha from the demonstrations, and epsilon from measured success.

Not in the paper, which sets alpha "close to the action scale observed in the demonstration dataset" by hand
(Sec. 5.4.2) and H per task (Table 8).
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.monitor import Monitor

BOUND_SHARE = 0.7
"""alpha as a share of the geometric mean that `bound_of` takes, where nothing else is asked for."""


def bound_of(d: Demonstrated, share: float = BOUND_SHARE) -> float:
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
    return share * (spread.mean() * fine).sqrt().item()


BASE_EPISODES = 150
"""Of the base alone, that its rate is measured by."""
LEAST_VARIANCE = 0.05
"""Of a success, assumed of a base that was always or never seen to succeed."""


@dataclass
class MeasuredExploration:
    """epsilon grows while the training episodes succeed as often as the base's own did, and shrinks while they do not.

    The base's rate is that of its own episodes: it acts alone until `start`, and on until `episodes` of them have
    ended; and whenever epsilon is 0 again, so that a first estimate that was lucky does not keep it there. It is
    compared with the latest `episodes` training episodes, and a shortfall within `tolerance` standard errors of the
    difference is taken for chance.
    """

    monitor: Monitor
    start: int
    """Environment steps in which the base acts alone."""
    opening_steps: int
    """Environment steps from 0 to 1 if nothing speaks against it, and back."""
    episodes: int = 25
    tolerance: float = 1.0
    alone: deque[bool] = field(default_factory=lambda: deque(maxlen=BASE_EPISODES))
    """How the latest episodes of the base alone ended."""
    value: float = 0.0
    """epsilon."""
    at: int = 0
    """Environment steps up to which the measurements have been taken into account."""
    seen: int = 0
    """Episodes that had ended by then."""
    mixed: int = 0
    """Of the next to end, how many may have begun while epsilon was not yet 0."""

    @property
    def horizon(self) -> Literal["auto"]:
        """As its setting is named."""
        return "auto"

    def epsilon(self, step: int) -> float:
        """As last decided: unlike a schedule's, it cannot be said for other steps."""
        return self.value

    def advance(self, step: int, envs: int) -> None:
        """Decide on epsilon by the episodes of `envs` environments that have ended by `step`."""
        if step > self.at:
            self._measure(step, envs)
            self.at = step

    def __call__(self, step: int, episode_step: Tensor) -> Tensor:
        self.advance(step, len(episode_step))
        return torch.rand(episode_step.shape, device=episode_step.device) < self.epsilon(step)

    @property
    def base_rate(self) -> float | None:
        """Share of the base's own episodes that succeeded; None until enough are known."""
        return sum(self.alone) / len(self.alone) if len(self.alone) >= self.episodes else None

    def _measure(self, step: int, envs: int) -> None:
        knew = self.base_rate is not None and self.at >= self.start
        latest, new = list(self.monitor.recent), self.monitor.ended - self.seen
        self.seen += new
        if self.value == 0:
            of_base = max(new - self.mixed, 0)
            self.mixed = max(self.mixed - new, 0)
            self.alone.extend(latest[-of_base:] if of_base else ())
        base_rate = self.base_rate
        if base_rate is None or not knew:
            return
        rate = sum(latest[-self.episodes :]) / self.episodes
        variance = max(base_rate * (1 - base_rate), LEAST_VARIANCE)
        spread = math.sqrt(variance / self.episodes + variance / len(self.alone))
        direction = 1 if rate >= base_rate - self.tolerance * spread else -1
        before = self.value
        self.value = min(max(before + direction * (step - self.at) / self.opening_steps, 0.0), 1.0)
        if before > 0 and self.value == 0:
            self.mixed = envs

    def state(self) -> dict[str, Any]:
        counts = {"at": self.at, "seen": self.seen, "mixed": self.mixed}
        return {"alone": list(self.alone), "value": self.value, **counts}

    def restore(self, state: dict[str, Any]) -> None:
        self.alone.clear()
        self.alone.extend(state["alone"])
        self.value, self.at = state["value"], state["at"]
        self.seen, self.mixed = state["seen"], state["mixed"]
