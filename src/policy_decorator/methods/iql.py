"""IQL (arXiv:2110.06169; paper Table 1): offline on the demonstrations, then online, with the same losses throughout.

Differs from the original: 20,000 updates offline instead of a million, networks and optimisers with the settings of all
methods here, no cosine schedule and no dropout. Demonstrations stay among its own decisions (`mix = pool`).
"""

from dataclasses import dataclass, field
from typing import Literal

from policy_decorator.errors import UserError
from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.off_policy import networks
from policy_decorator.methods.offline import FromDemonstrations, imitator, run_of, shown_to, source_of, value_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.iql import IQL, IQLConfig


@dataclass(frozen=True)
class Config(FromDemonstrations):
    """Settings of IQL."""

    mix: Literal["share", "pool"] = "pool"
    offline_updates: int = 20_000
    """Updates on demonstrations alone before the first environment step."""
    iql: IQLConfig = field(default_factory=IQLConfig)
    """Settings of its losses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.iql.expectile < 1:
            raise UserError(f"expectile must be between 0 and 1, got {self.iql.expectile}.")
        if self.iql.advantage_sharpness < 0 or self.iql.most_weight < 1:
            raise UserError("advantage_sharpness must be at least 0, and most_weight at least 1.")


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures."""
    demos = source_of(cfg, shown_to("iql", cfg, p))
    _, critics = networks(cfg, p, p.obs_size, p.obs_size, p.action_size)
    actor = imitator(cfg, p)
    return run_of(cfg, p, demos, IQL(actor, critics, value_of(cfg, p), Takeover(), cfg.sac, cfg.iql), actor)
