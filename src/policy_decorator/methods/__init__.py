"""Every method by name: one file each, one line here."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from policy_decorator.errors import lookup
from policy_decorator.methods import (
    awac,
    cal_ql,
    cql,
    dac,
    dapg,
    dipo,
    dppo,
    fish,
    gail,
    iql,
    jsrl,
    policy_decorator,
    ppo_finetuning,
    residual_rl,
    rlpd,
    rot,
    sac_lora,
    sacfd,
)
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
        MethodEntry(
            "dppo",
            "the Diffusion Policy itself: PPO on its last denoising steps",
            dppo.Config,
            dppo.build,
        ),
        MethodEntry(
            "ppo-finetuning",
            "the base itself (mlp, bet): PPO on all of its parameters",
            ppo_finetuning.Config,
            ppo_finetuning.build,
        ),
        MethodEntry(
            "sac-lora",
            "the Behavior Transformer itself: SAC on its offsets, by LoRA",
            sac_lora.Config,
            sac_lora.build,
        ),
        MethodEntry(
            "dipo",
            "the Diffusion Policy itself: actions improved by the critics' gradient, imitated by LoRA",
            dipo.Config,
            dipo.build,
        ),
        MethodEntry(
            "rlpd",
            "SAC from scratch, half of every batch demonstrations, LayerNorm in its critics",
            rlpd.Config,
            rlpd.build,
        ),
        MethodEntry("sacfd", "SAC from scratch, demonstrations in its replay", sacfd.Config, sacfd.build),
        MethodEntry(
            "cal-ql",
            "critics learned on demonstrations, conservative but calibrated, then SAC",
            cal_ql.Config,
            cal_ql.build,
        ),
        MethodEntry("cql", "the same, not calibrated", cal_ql.Config, cql.build),
        MethodEntry("iql", "imitates better actions more, valued by an expectile of the data", iql.Config, iql.build),
        MethodEntry("awac", "imitates better actions more, valued against its own", awac.Config, awac.build),
        MethodEntry(
            "dapg", "behaviour cloning, then a natural policy gradient that goes on imitating", dapg.Config, dapg.build
        ),
        MethodEntry(
            "gail",
            "a policy from scratch, rewarded where it cannot be told from the demonstrations",
            gail.Config,
            gail.build,
        ),
        MethodEntry("dac", "TD3 from scratch, rewarded as gail; the end's value is learned", dac.Config, dac.build),
        MethodEntry(
            "fish",
            "a residual at once, rewarded by optimal transport to the demonstrations instead of success",
            fish.Config,
            fish.build,
        ),
        MethodEntry(
            "rot",
            "the base itself fine-tuned by optimal transport, held near the demonstrations (BeT or MLP)",
            rot.Config,
            rot.build,
        ),
    )
}


def settings_of(method: str, learn: OffPolicyConfig) -> OffPolicyConfig:
    """`learn` for another method: what both have is kept, what only the other has is its default.

    What makes the other method what it is stays its own (`OffPolicyConfig.taking`).

    Raises:
        UserError: an unknown method.
    """
    kind = lookup("method", method, METHODS).config
    if type(learn) is kind:
        return learn
    common = {f.name for f in dataclasses.fields(kind)} & {f.name for f in dataclasses.fields(learn)}
    return kind.taking(**{name: getattr(learn, name) for name in common})
