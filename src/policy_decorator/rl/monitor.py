"""What training looks like from outside: recent successes and how much the residual does."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from policy_decorator.types import Step, Transition

SATURATED = 0.95
"""|raw| above which a residual counts as pressed against its bound."""

FEWEST_EPISODES = 10
"""Below this a rate is an accident."""


class Monitor:
    """Success over the last 100 training episodes; size and saturation of the residuals since the last reading."""

    def __init__(self, idle: Callable[[Tensor], Tensor] = torch.zeros_like) -> None:
        """`idle`: what stands for the actor's action where the base acts alone (`Composition.idle`)."""
        self.idle = idle
        self.recent: deque[bool] = deque(maxlen=100)
        self.ended = 0  # episodes in all
        self.succeeded: set[int] = set()  # seeds of running episodes
        self.sums: Tensor | None = None  # residual magnitude, saturated share, active rows, rows
        self.learning: dict[str, Tensor] = {}  # the learner's latest metrics

    def observe(self, t: Transition, step: Step) -> None:
        self.succeeded.update(step.episode[step.success].tolist())
        ended = step.episode[step.done].tolist()
        self.note([episode in self.succeeded for episode in ended])
        self.succeeded.difference_update(ended)
        size = t.raw.abs().flatten(1)  # (B, Ta * Da)
        active = (t.raw != self.idle(t.base)).flatten(1).any(dim=1).float()
        parts = (size.mean(1) * active, (size > SATURATED).float().mean(1) * active, active, torch.ones_like(active))
        sums = torch.stack([x.sum() for x in parts])
        self.sums = sums if self.sums is None else self.sums + sums

    def note(self, successes: Sequence[bool]) -> None:
        """Episodes that have ended."""
        self.recent.extend(successes)
        self.ended += len(successes)

    def read(self) -> dict[str, float]:
        """Metrics since the last reading; magnitudes are means over the decisions at which the residual spoke."""
        enough = len(self.recent) >= FEWEST_EPISODES
        out = {"train/success": sum(self.recent) / len(self.recent)} if enough else {}
        if self.sums is not None:
            size, saturated, active, rows = self.sums.tolist()
            out["train/residual_share"] = active / rows
            if active:
                out |= {"train/residual_norm": size / active, "train/saturation": saturated / active}
        self.sums = None
        return out

    def state(self) -> dict[str, Any]:
        episodes = {"recent": list(self.recent), "ended": self.ended, "succeeded": sorted(self.succeeded)}
        return {**episodes, "sums": self.sums, "learning": dict(self.learning)}

    def restore(self, state: dict[str, Any]) -> None:
        self.recent = deque(state["recent"], maxlen=100)
        self.sums, self.learning, self.ended = state["sums"], dict(state["learning"]), state["ended"]
        self.succeeded = set(state["succeeded"])
