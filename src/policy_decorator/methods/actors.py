"""What acts in methods that learn with SAC from demonstrations: an MLP, the base itself, or a transformer of its size.

The originals of RLPD and Cal-QL have a small MLP. The paper fine-tunes its Behavior Transformer with them (App. B.5.1)
as in B.4.1: bounded offsets, LoRA, critics that are MLPs of the newest frame. Between the two stands a transformer that
was never trained (App. F.3).
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from policy_decorator.methods.finetuned import INITIAL_STD, behavior_transformer_of
from policy_decorator.methods.off_policy import networks
from policy_decorator.methods.offline import UNTRAINED_STD, FromDemonstrations, standardized
from policy_decorator.methods.problem import Problem
from policy_decorator.rl.lora import LoRAConfig
from policy_decorator.rl.nets import Critics
from policy_decorator.rl.offsets import OffsetActor
from policy_decorator.rl.windows import NewestCritics


@dataclass(frozen=True)
class WithAnyActor(FromDemonstrations):
    """Settings of these methods."""

    actor: Literal["mlp", "base", "gpt"] = "mlp"
    """What acts and learns: an MLP from scratch (the originals); the base, a Behavior Transformer with bounded offsets,
    by LoRA (the paper); a transformer of the base's size from scratch (App. F.3)."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Of actor = base."""

    @property
    def looks_at(self) -> Literal["newest", "window"]:
        return "newest" if self.actor == "mlp" else "window"

    @property
    def knows(self) -> bool:
        return self.actor == "base"


def actor_and_critics(method: str, cfg: WithAnyActor, p: Problem) -> tuple[Any, Critics]:
    """What acts, and what values it.

    Raises:
        UserError: the actor is to be the base, or as large, and that is no Behavior Transformer of bounded offsets.
        MissingExtra: PEFT is not installed.
    """
    if cfg.actor == "mlp":
        return networks(cfg, p, p.obs_size, p.obs_size, p.action_size)
    base = behavior_transformer_of(f"{method} with --actor {cfg.actor}", p.base)
    if cfg.actor == "base":
        policy, lora, std = base, cfg.lora, INITIAL_STD
    else:
        policy, lora, std = untrained(base), None, UNTRAINED_STD
    actor = OffsetActor(policy, lora, cfg.nets, std if cfg.nets.initial_std is None else cfg.nets.initial_std)
    critics = standardized(cfg, p, NewestCritics(p.obs_size, p.action_size, cfg.nets))
    return actor.to(p.device), critics.to(p.device)


def untrained(base: Any) -> nn.Module:
    """A transformer as large, which answers tanh of its output: it has one cluster, at 0. It sees as the base does."""
    cfg = replace(base.cfg, clusters=1, action_scale=1.0, last_action_scale=1.0)
    other = type(base)(cfg, base.obs_size, base.action_size)
    other.standardize = copy.deepcopy(base.standardize)
    return other
