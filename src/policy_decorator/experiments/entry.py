"""A run of a published measurement as data, and its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from policy_decorator.config import RefineConfig
from policy_decorator.errors import lookup
from policy_decorator.experiments.bases import BASES
from policy_decorator.experiments.presets import settings


@dataclass(frozen=True)
class Entry:
    """One line of a study: a base policy, a method and, where given, what differs from the preset."""

    base: str
    """See `experiments.bases`."""
    label: str
    preset: str = "quick"
    method: str = "policy-decorator"
    total_steps: int | None = None
    bound: float | Literal["auto", "tolerance"] | None = None
    horizon: int | Literal["auto"] | None = None
    learn: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the method's Config."""
    nets: Mapping[str, Any] = field(default_factory=dict)
    """Fields of NetConfig."""
    sac: Mapping[str, Any] = field(default_factory=dict)
    """Fields of SACConfig."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Fields of RefineConfig."""


def config(entry: Entry, seed: int) -> RefineConfig:
    """The run of an entry."""
    base = lookup("base policy of the studies", entry.base, BASES)
    cfg = settings(
        entry.preset,
        base.task,
        kind=base.policy,
        method=entry.method,
        bound=entry.bound,
        horizon=entry.horizon,
        total_steps=entry.total_steps,
    )
    nets, sac = replace(cfg.learn.nets, **entry.nets), replace(cfg.learn.sac, **entry.sac)
    learn = replace(cfg.learn, **entry.learn, nets=nets, sac=sac)
    train = replace(cfg.train, **entry.train)
    # Runs stand side by side, each on its own core; the results are the same. They show what was learned, good or bad.
    run = {"workers": 0, "keep": "learned", **entry.run}
    return replace(cfg, policy=base.policy, seed=seed, learn=learn, train=train, **run)
