"""Which policy a run hands over: that of its best evaluation, the base's own among them, or that of its end."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from policy_decorator.decorator import DecoratedPolicy
from policy_decorator.methods.finetuned import FineTuned
from policy_decorator.rl.nets import TanhGaussian


@dataclass
class Best:
    """The best evaluation so far, the later of two that are as good, and what acted in it."""

    success: float = -1.0
    step: int = 0
    """Environment steps of the run at that moment."""
    actor: Mapping[str, Tensor] | None = None
    base: bool = False
    """Whether it was the base's own."""

    def offer(self, success: float, step: int, actor: nn.Module, base: Mapping[str, Tensor] | None = None) -> None:
        """Take the actor as it is, or what makes it the `base` (`as_base`), if that was no worse."""
        if success >= self.success:
            state = copy.deepcopy(actor.state_dict()) if base is None else base
            self.success, self.step, self.actor, self.base = success, step, state, base is not None


def as_base(policy: DecoratedPolicy) -> dict[str, Tensor] | None:
    """The state of `policy.actor` with which `policy` acts as its base does, asked before anything is learned.

    A residual of scale 0 adds nothing, and what is fine-tuned begins as the base. None: an actor that acts alone, or of
    the base's size but never trained, has no such state.
    """
    actor: Any = policy.actor
    state: dict[str, Tensor] = copy.deepcopy(actor.state_dict())
    if isinstance(policy, FineTuned):
        return state if policy.from_base else None
    if type(policy) is not DecoratedPolicy:
        return None
    for name, part in actor.named_modules():
        if isinstance(part, TanhGaussian):
            state[f"{name}.scale".lstrip(".")].zero_()
    return state
