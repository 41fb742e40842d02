"""Every method by name: one file each, one line here."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from policy_decorator.errors import lookup
from policy_decorator.methods import jsrl, policy_decorator, residual_rl
from policy_decorator.methods.off_policy import OffPolicyConfig
from policy_decorator.methods.problem import Problem, Run

__all__ = ["METHODS", "MethodEntry", "OffPolicyConfig", "Problem", "Run", "settings_of"]


@dataclass(frozen=True)
class MethodEntry:
    name: str
    summary: str
    config: type[OffPolicyConfig]
    """Its settings, whose defaults are complete."""
    build: Callable[[Any, Problem], Run]
    """(settings, problem) -> the parts of a run."""


METHODS: Mapping[str, MethodEntry] = {
    m.name: m
    for m in (
        MethodEntry(
            "policy-decorator",
            "bounded residual, introduced progressively (the paper's method)",
            policy_decorator.Config,
            policy_decorator.build,
        ),
        MethodEntry(
            "residual-rl",
            "the same residual, unbounded and at once (alpha 1, H 0)",
            policy_decorator.ResidualConfig,
            residual_rl.build,
        ),
        MethodEntry(
            "jsrl",
            "the base opens an episode, a policy from scratch takes over, ever earlier",
            jsrl.Config,
            jsrl.build,
        ),
    )
}


def settings_of(method: str, learn: OffPolicyConfig) -> OffPolicyConfig:
    """`learn` for another method: what both have is kept, what only the other has is its default.

    Raises:
        UserError: an unknown method.
    """
    kind = lookup("method", method, METHODS).config
    if type(learn) is kind:
        return learn
    common = {f.name for f in dataclasses.fields(kind)} & {f.name for f in dataclasses.fields(learn)}
    return kind(**{name: getattr(learn, name) for name in common})
