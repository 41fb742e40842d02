"""AWAC (arXiv:2006.09359; paper Table 1): offline on the demonstrations, then online, with the same losses throughout.

Differs from the original: networks and optimisers have the settings of all methods here. Demonstrations stay among its
own decisions (`mix = pool`).
"""

from dataclasses import dataclass, field
from typing import Literal

from policy_decorator.errors import UserError
from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.off_policy import networks
from policy_decorator.methods.offline import FromDemonstrations, imitator, run_of, shown_to, source_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.awac import AWAC, AWACConfig


@dataclass(frozen=True)
class Config(FromDemonstrations):
    """Settings of AWAC."""

    mix: Literal["share", "pool"] = "pool"
    offline_updates: int = 25_000
    """Updates on demonstrations alone before the first environment step (the original's)."""
    awac: AWACConfig = field(default_factory=AWACConfig)
    """Settings of its losses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.awac.advantage_temperature <= 0 or self.awac.most_weight < 1:
            raise UserError("advantage_temperature must be above 0, and most_weight at least 1.")


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures."""
    demos = source_of(cfg, shown_to("awac", cfg, p))
    _, critics = networks(cfg, p, p.obs_size, p.obs_size, p.action_size)
    actor = imitator(cfg, p)
    return run_of(cfg, p, demos, AWAC(actor, critics, Takeover(), cfg.sac, cfg.awac), actor)
