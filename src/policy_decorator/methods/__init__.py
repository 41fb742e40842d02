"""Every method by name: one file each, one line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from policy_decorator.methods import policy_decorator, residual_rl
from policy_decorator.methods.problem import Problem, Run

__all__ = ["METHODS", "MethodEntry", "Problem", "Run"]


@dataclass(frozen=True)
class MethodEntry:
    name: str
    summary: str
    build: Callable[[policy_decorator.Config, Problem], Run]


METHODS: Mapping[str, MethodEntry] = {
    m.name: m
    for m in (
        MethodEntry(
            "policy-decorator",
            "bounded residual, introduced progressively (the paper's method)",
            policy_decorator.build,
        ),
        MethodEntry("residual-rl", "the same residual, unbounded and at once (alpha 1, H 0)", residual_rl.build),
    )
}
