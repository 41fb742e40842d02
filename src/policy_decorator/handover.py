"""Which policy a run hands over: that of its best evaluation, the base's own among them, or that of its end."""

import copy
from typing import Any

from torch import Tensor

from policy_decorator.decorator import DecoratedPolicy
from policy_decorator.methods.finetuned import FineTuned
from policy_decorator.rl.nets import TanhGaussian


def as_base(policy: DecoratedPolicy) -> dict[str, Tensor] | None:
    """The state of `policy.actor` with which `policy` acts as its base does, asked before anything is learned.

    A residual of scale 0 adds nothing, and what is fine-tuned begins as the base. None: an actor that acts alone has no
    such state.
    """
    actor: Any = policy.actor
    state: dict[str, Tensor] = copy.deepcopy(actor.state_dict())
    if isinstance(policy, FineTuned):
        return state
    if type(policy) is not DecoratedPolicy:
        return None
    for name, part in actor.named_modules():
        if isinstance(part, TanhGaussian):
            state[f"{name}.scale".lstrip(".")].zero_()
    return state
