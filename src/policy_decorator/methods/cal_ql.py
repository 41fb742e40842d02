"""Cal-QL (arXiv:2303.05479; paper App. B.5.1, F.3): critics learned offline, conservative but calibrated; then SAC.

The paper learns offline on demonstrations and goes on with plain SAC, because every conservative update asks the policy
dozens of times; the original goes on as it began (`online = conservative`). App. F.3 leads from one to the other:

    A  all data, failures too   online = conservative, offline_data = all  (pidec refine --demos DEMOS ROLLOUTS)
    B  demonstrations only      online = conservative, offline_data = successes
    C  and SAC online           online = sac, offline_data = successes
    D  and a GPT from scratch   actor = gpt
    E  or the BeT itself        actor = base: the paper's baseline

The paper does not say how batches are mixed online: half and half, as the original. Differs from the original: returns
are of rewards success + `reward_shift`; weight and temperature follow the scale of those.
"""

import copy
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from policy_decorator.errors import UserError, lookup
from policy_decorator.methods.actors import WithAnyActor, actor_and_critics
from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.offline import run_of, shown_to, source_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.cql import Conservative, CQLConfig, Hindsight, Returning, returning, sharing, spread_of
from policy_decorator.rl.demonstrations import as_source
from policy_decorator.rl.sac import SAC
from policy_decorator.types import Transition

LADDER: dict[str, dict[str, Any]] = {
    "A": {"online": "conservative", "offline_data": "all"},
    "B": {"online": "conservative", "offline_data": "successes"},
    "C": {"online": "sac", "offline_data": "successes"},
    "D": {"online": "sac", "offline_data": "successes", "actor": "gpt"},
    "E": {"online": "sac", "offline_data": "successes", "actor": "base"},
}
"""Rung of App. F.3 -> settings."""


@dataclass(frozen=True)
class Config(WithAnyActor):
    """Settings of Cal-QL and of CQL."""

    offline_updates: int = 20_000
    """Updates on demonstrations alone before the first environment step (the original's on Adroit)."""
    online: Literal["sac", "conservative"] = "sac"
    """How it goes on: without the conservative term (the paper), or with it (the original)."""
    cql: CQLConfig = field(default_factory=CQLConfig)
    """Settings of that term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sac.gamma >= 1:
            raise UserError("The return of an episode that failed is its reward / (1 - gamma): gamma must be below 1.")
        if min(self.cql.cql_samples, self.cql.backup_samples) < 1:
            raise UserError("cql_samples and backup_samples must be at least 1.")
        weight, temperature = (1 if x == "auto" else x for x in (self.cql.cql_weight, self.cql.cql_temperature))
        if temperature <= 0 or weight < 0:
            raise UserError("cql_temperature must be above 0, and cql_weight at least 0.")


def ladder(rung: str, **settings: Any) -> Config:
    """The settings of a rung of App. F.3. Raises UserError for one that is not here."""
    return Config(**settings | lookup("rung", rung, LADDER))


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures, n-step returns where references are needed online, a
    base that `actor` cannot be; MissingExtra: PEFT."""
    return conservative("cal-ql", cfg, p, calibrated=True)


def conservative(method: str, cfg: Config, p: Problem, *, calibrated: bool) -> Run:
    """Cal-QL, or CQL where it is not `calibrated`."""
    again = cfg.online == "conservative"
    if again and calibrated and cfg.n_step != 1:
        raise UserError(f"{method} learns from single decisions where it stays conservative online: give n_step = 1.")
    shown = shown_to(method, cfg, p)
    demos = source_of(cfg, shown)
    how: dict[str, Any] = {"n_step": cfg.n_step, "gamma": cfg.sac.gamma, "reward_shift": cfg.reward_shift}
    referred = as_source(cast(Any, returning(shown, **how))) if calibrated else demos
    actor, critics = actor_and_critics(method, cfg, p)
    parts = actor, critics, Takeover(), p.action_size, cfg.sac
    spread = spread_of(cfg.sac.gamma, cfg.reward_shift, ends=shown.ends_at_success)
    if spread <= 0 and "auto" in (cfg.cql.cql_weight, cfg.cql.cql_temperature):
        raise UserError(
            f"With reward_shift = {cfg.reward_shift} failing for ever is worth as much as success: give 0 or less."
        )
    before = Conservative(*parts, cql=cfg.cql, calibrated=calibrated, spread=spread)
    learner = copy.copy(before) if again else SAC(*parts)
    sharing(learner, before)
    hindsight = again and calibrated
    return run_of(
        cfg,
        p,
        referred if again else demos,
        learner,
        actor,
        offline_learner=before,
        offline_demos=referred,
        kind=Returning if hindsight else Transition,
        intake=Hindsight(cfg.sac.gamma) if hindsight else None,
    )
