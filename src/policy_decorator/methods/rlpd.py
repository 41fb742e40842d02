"""RLPD (arXiv:2302.02948; paper App. B.5.1): SAC whose batches are half demonstrations, with LayerNorm in its critics.

The paper leaves out the original's ensemble and its many updates per step; `original` puts them back. Its policy is the
Behavior Transformer, fine-tuned (`actor = base`); the default is the original's MLP, for any base to compare with.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from policy_decorator.methods.actors import WithAnyActor, actor_and_critics
from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.offline import run_of, shown_to, source_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SAC, SACConfig


@dataclass(frozen=True)
class Config(WithAnyActor):
    """Settings of RLPD; those of `original` beside the paper's."""

    nets: NetConfig = field(default_factory=lambda: NetConfig(critic_layer_norm=True))

    @classmethod
    def taking(cls, **common: Any) -> Self:
        made = super().taking(**common)
        return replace(made, nets=replace(made.nets, critic_layer_norm=True))


UPDATES_PER_STEP = 20.0
"""Of the original: `train.updates_per_step` for `original`."""


def original() -> Config:
    """The original's settings for Adroit: 10 critics of which the target believes 2, one step of the actor in 20.

    Its policy begins with a deviation near 1. Differs from the original: networks are built as elsewhere here
    (docs/differences-from-the-paper.md).
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
    return Config(nets=NetConfig(critics=10, critic_layer_norm=True, initial_std=1.0), sac=sac)


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures, a base that `actor` cannot be; MissingExtra: PEFT."""
    demos = source_of(cfg, shown_to("rlpd", cfg, p))
    actor, critics = actor_and_critics("rlpd", cfg, p)
    return run_of(cfg, p, demos, SAC(actor, critics, Takeover(), p.action_size, cfg.sac), actor)
