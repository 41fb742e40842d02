"""RLPD (arXiv:2302.02948; paper App. B.5.1): SAC whose batches are half demonstrations, with LayerNorm in its critics.

The paper leaves out the original's ensemble and its many updates per step; `original` puts them back. Differs from the
paper: the policy is an MLP that learns from scratch, as the original's; the paper fine-tunes its base with it.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.off_policy import networks
from policy_decorator.methods.offline import FromDemonstrations, run_of, shown_to, source_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SAC, SACConfig


@dataclass(frozen=True)
class Config(FromDemonstrations):
    """Settings of RLPD; those of `original` beside the paper's."""

    nets: NetConfig = field(default_factory=lambda: NetConfig(critic_layer_norm=True))

    @classmethod
    def taking(cls, **common: Any) -> Self:
        if "nets" in common:
            common["nets"] = replace(common["nets"], critic_layer_norm=True)
        return super().taking(**common)


UPDATES_PER_STEP = 20.0
"""Of the original: `train.updates_per_step` for `original`."""


def original() -> Config:
    """The original's settings for Adroit: 10 critics of which the target believes 2, one step of the actor in 20.

    Differs from the original: hidden layers begin as PyTorch's and not with Xavier's.
    """
    sac = SACConfig(
        gamma=0.99,
        tau=0.005,
        lr=3e-4,
        batch_size=256,
        actor_every=20,
        target_entropy=-0.5,
        entropy_in_backup=False,
        critic_subset=2,
        actor_value="mean",
    )
    return Config(nets=NetConfig(critics=10, critic_layer_norm=True), sac=sac)


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures."""
    demos = source_of(cfg, shown_to("rlpd", cfg, p))
    actor, critics = networks(cfg, p, p.obs_size, p.obs_size, p.action_size)
    return run_of(cfg, p, demos, SAC(actor, critics, Takeover(), p.action_size, cfg.sac), actor)
