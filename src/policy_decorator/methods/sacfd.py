"""SACfd: SAC with the demonstrations in its replay, where they stay (after DDPGfD, arXiv:1707.08817; paper Table 1).

Differs from DDPGfD: no priorities (demonstrations are drawn as often as own decisions, or a fixed share of every batch
with `mix = share`), returns of one length (`n_step`), no weight decay. RLPD is this with `mix = share` and LayerNorm.
"""

from dataclasses import dataclass
from typing import Literal

from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.off_policy import networks
from policy_decorator.methods.offline import FromDemonstrations, run_of, shown_to, source_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.sac import SAC


@dataclass(frozen=True)
class Config(FromDemonstrations):
    """Settings of SACfd."""

    mix: Literal["share", "pool"] = "pool"


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures."""
    demos = source_of(cfg, shown_to("sacfd", cfg, p))
    actor, critics = networks(cfg, p, p.obs_size, p.obs_size, p.action_size)
    return run_of(cfg, p, demos, SAC(actor, critics, Takeover(), p.action_size, cfg.sac), actor)
