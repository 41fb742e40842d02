"""A base policy whose own parameters go on learning: what fine-tuning methods have in common."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from policy_decorator.decorator import DecoratedPolicy


@dataclass(frozen=True)
class FineTuned(DecoratedPolicy):
    """The fine-tuned policy, `actor`, in the place of the base that it came from.

    The actor is a policy of this package (`base_policies`), or has `merged()`, which gives one: that is what is saved.
    """

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da)."""
        return cast(Any, self.actor).act(window)
