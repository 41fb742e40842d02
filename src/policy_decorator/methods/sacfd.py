"""SACfd: SAC with the demonstrations in its replay, where they stay (after DDPGfD, arXiv:1707.08817; paper Table 1).

Differs from DDPGfD: no priorities (demonstrations are drawn as often as own decisions, or a fixed share of every batch
with `mix = share`), returns of one length (`n_step`), no weight decay. RLPD is this with `mix = share` and LayerNorm.
"""

from dataclasses import dataclass
from typing import Literal

from policy_decorator.methods.actors import WithAnyActor, actor_and_critics
from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.offline import run_of, shown_to, source_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.sac import SAC


@dataclass(frozen=True)
class Config(WithAnyActor):
    """Settings of SACfd."""

    mix: Literal["share", "pool"] = "pool"


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures, a base that `actor` cannot be; MissingExtra: PEFT."""
    demos = source_of(cfg, shown_to("sacfd", cfg, p))
    actor, critics = actor_and_critics("sacfd", cfg, p)
    return run_of(cfg, p, demos, SAC(actor, critics, Takeover(), p.action_size, cfg.sac), actor)
