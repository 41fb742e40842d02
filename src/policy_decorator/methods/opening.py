"""A policy whose episodes the base opens: the successor of JSRL, and fine-tuned policies of a shorter horizon."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from policy_decorator.decorator import DecoratedPolicy
from policy_decorator.memory import RowMemory, session

ONE = torch.ones((), dtype=torch.int64)


@dataclass(frozen=True)
class BaseFirst(DecoratedPolicy):
    """Counts the steps of every row's episode."""

    counts: RowMemory = field(default_factory=RowMemory, init=False)

    def session(self) -> Self:
        return replace(self, base=session(self.base))

    def reset(self, rows: Tensor) -> None:
        super().reset(rows)
        self.counts.reset(rows)

    def handed_over(self, rows: Tensor, base: Tensor, own: Tensor, after: Any) -> Tensor:
        """Actions (K, Ta, Da) of rows (K,): the base's in the first `after` steps of an episode, then its own."""
        steps = self.counts.read("steps", rows, ONE)
        self.counts.write("steps", rows, steps + base.shape[1])
        return torch.where((steps.to(base.device) < after)[:, None, None], base, own)

    def state(self) -> dict[str, Any] | None:
        base = super().state()
        return None if base is None else {"counts": self.counts.state(), "base": base}

    def restore(self, state: dict[str, Any]) -> None:
        self.counts.restore(state["counts"])
        super().restore(state["base"])
