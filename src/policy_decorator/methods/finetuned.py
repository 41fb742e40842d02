"""A base policy whose own parameters go on learning: what fine-tuning methods have in common."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from policy_decorator.chunks import unqueued
from policy_decorator.decorator import DecoratedPolicy
from policy_decorator.errors import UserError
from policy_decorator.memory import ask
from policy_decorator.methods.opening import BaseFirst


@dataclass(frozen=True)
class FineTuned(DecoratedPolicy):
    """The fine-tuned policy, `actor`, in the place of the base that it came from.

    The actor is a policy of this package (`base_policies`), or has `merged()`, which gives one: that is what is saved.
    """

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da)."""
        return cast(Any, self.actor).act(window)


@dataclass(frozen=True)
class Opened(BaseFirst, FineTuned):
    """The base in the first `base_steps` environment steps of an episode, then the fine-tuned policy (App. F.4)."""

    base_steps: int = 0

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da); both are asked at every decision."""
        rows = torch.arange(len(window)) if rows is None else rows
        return self.handed_over(rows, ask(self.base, window, rows), super().act(window), self.base_steps)


def diffusion_of(method: str, base: Any) -> Any:
    """The base, a Diffusion Policy of whole chunks. Raises UserError: it is none, or is asked action by action."""
    inner = unqueued(base)
    if not hasattr(inner, "denoising"):
        raise UserError(
            f"{method} tunes a Diffusion Policy of this package: train one with `pidec imitate diffusion`, or take the "
            "method policy-decorator, which asks nothing of its base."
        )
    if inner is not base:
        raise UserError(f"{method} tunes chunks of actions as they are executed: give --decide chunk.")
    return base


def trained(actor: torch.nn.Module) -> str:
    """How much of it learns, in words."""
    sizes = [(p.numel(), p.requires_grad) for p in actor.parameters()]
    learned, total = sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
    return f"{learned:,} of {total:,} parameters learn ({learned / total:.1%})."
