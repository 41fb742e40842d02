"""The network behind a policy, whoever's it is: whether it is ready to be asked, and a hash of its parameters."""

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from policy_decorator.base_policies.checkpoint import parameter_hash
from policy_decorator.chunks import unqueued
from policy_decorator.errors import UserError

WHERE = ("policy", "nets", "__self__")
"""Attributes of what an adapter asks that may be its network: Stable-Baselines3's, robomimic's, a method's."""


def network_of(policy: Any) -> nn.Module | None:
    """The policy itself, or what its adapter is around; None where there is none that is known."""
    policy = unqueued(policy)
    behind = getattr(policy, "behind", None)
    known = (policy, behind, *(getattr(behind, name, None) for name in WHERE))
    return next((thing for thing in known if isinstance(thing, nn.Module)), None)


def parameters_of(policy: Any) -> str | None:
    """A hash of all that a policy computes with, equal if bit-identical; None where nobody can look at that.

    Of a policy of this package it is the `parameter_hash`, of a served one what its server says when it is asked now,
    of a refined one that of both its parts. Raises UserError for a server that does not serve what it did.
    """
    policy = unqueued(policy)
    ask: Callable[[], str | None] | None = getattr(policy, "fingerprint", None)
    if callable(ask):
        return ask()
    if (network := network_of(policy)) is not None:
        return parameter_hash(network)
    if not hasattr(policy, "base") or not isinstance(actor := getattr(policy, "actor", None), nn.Module):
        return None
    base = parameters_of(policy.base)
    return base and hashlib.sha256(f"{base} {parameter_hash(actor)}".encode()).hexdigest()


def warn_of_another(base: Any, learned_on: str | None) -> None:
    """Warns where `base` is not the policy of this hash, on which a residual was learned, if anybody can know."""
    now = None if learned_on is None else parameters_of(base)
    if now not in (None, learned_on):
        warnings.warn(
            "The base policy given has other parameters than the one that the residual was learned on: measure them "
            "anew before you trust the numbers of its run.",
            stacklevel=3,
        )


def check_evaluating(network: nn.Module | None) -> None:
    """Refuses networks that would draw or learn when they are asked. Raises UserError."""
    for name, part in network.named_modules() if network is not None else ():
        learns = isinstance(part, _NormBase) and part.track_running_stats
        if part.training and (learns or _draws(part)):
            raise UserError(
                f"The policy's network is in training mode, and its {type(part).__name__} ({name or 'itself'}) would "
                f"{'learn from' if learns else 'answer at random to'} what it is asked: call .eval() on it first."
            )


def _draws(part: nn.Module) -> bool:
    if isinstance(part, _DropoutNd):
        return part.p > 0
    return isinstance(part, nn.RNNBase | nn.MultiheadAttention) and part.dropout > 0
