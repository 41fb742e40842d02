"""A base policy whose own parameters go on learning: what fine-tuning methods have in common."""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from policy_decorator.chunks import unqueued
from policy_decorator.decorator import DecoratedPolicy
from policy_decorator.errors import UserError
from policy_decorator.memory import ask
from policy_decorator.methods.opening import BaseFirst

INITIAL_STD = 0.02
"""Standard deviation of a Behavior Transformer's offsets (before tanh) at first, where `nets.initial_std` says nothing
else: wide noise would spoil the base."""


@dataclass(frozen=True)
class FineTuned(DecoratedPolicy):
    """The fine-tuned policy, `actor`, in the place of the base that it came from.

    The actor is a policy of this package (`base_policies`), or has `merged()`, which gives one: that is what is saved.
    """

    from_base: bool = field(default=True, kw_only=True)
    """Whether the actor begins as the base; False: as a network of its kind that was never trained."""

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


def behavior_transformer_of(method: str, base: Any) -> Any:
    """The base, a Behavior Transformer whose offsets are bounded (App. B.4.1). Raises UserError: it is none."""
    base = unqueued(base)
    if not isinstance(base, nn.Module) or not hasattr(base, "choice"):
        raise UserError(
            f"{method} tunes a Behavior Transformer of this package (pidec imitate bet --bounded-offset). Take dipo or "
            "dppo for a Diffusion Policy, and the method policy-decorator for any other base."
        )
    if not getattr(base.cfg, "bounded_offset", False):
        raise UserError(
            f"{method} needs a Behavior Transformer whose offsets are bounded: train it with pidec imitate bet "
            "--bounded-offset, and --last-action-scale 0.3 (ManiSkill) or --action-scale 0.5 (Adroit)."
        )
    return base


def trained(actor: nn.Module) -> str:
    """How much of it learns, in words."""
    sizes = [(p.numel(), p.requires_grad) for p in actor.parameters()]
    learned, total = sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
    return f"{learned:,} of {total:,} parameters learn ({learned / total:.1%})."
