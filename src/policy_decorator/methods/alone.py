"""A policy that acts by itself: what methods that learn one from scratch have in common (RLPD, GAIL, JSRL's successor).

The base policy is asked nothing in training. It stays beside the learned one for the comparison at the end.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from policy_decorator.decorator import DecoratedPolicy, ProgressiveExploration
from policy_decorator.errors import UserError
from policy_decorator.methods.off_policy import OffPolicyConfig, assemble, learner_of, networks
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rollout import Collector


@dataclass(frozen=True)
class Takeover:
    """The actor's action instead of the base's; where the base acts, its action counts as the actor's own."""

    def actor_input(self, obs: Tensor, base: Tensor) -> Tensor:
        return obs

    def execute(self, base: Tensor, raw: Tensor) -> Tensor:
        return raw

    def critic_action(self, base: Tensor, raw: Tensor) -> Tensor:
        return raw

    def idle(self, base: Tensor) -> Tensor:
        return base


@dataclass(frozen=True)
class Nobody:
    """Stands where a base policy is asked: answers zeros, and no question is counted."""

    actions: tuple[int, int]
    """(Ta, Da)."""
    context: int = 1
    queries: int = 0

    @property
    def chunk(self) -> int:
        return self.actions[0]

    def session(self) -> "Nobody":
        return self

    def reset(self, rows: Tensor) -> None: ...

    def act(self, window: Tensor, rows: Tensor) -> Tensor:
        """(B, To, Do), (B,) -> zeros (B, Ta, Da)."""
        return torch.zeros(len(window), *self.actions, device=window.device)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Alone(DecoratedPolicy):
    """The actor's mean action; the base is not asked."""

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da); the actor sees the newest frame."""
        base = window.new_zeros(len(window), 0)
        return self.composition.execute(base, self.actor.mode(self.composition.actor_input(window[:, -1], base)))


def own_actions(demonstrated: Demonstrated | None) -> Demonstrated | None:
    """Demonstrations in which what was done is the actor's own action, not a correction of the base's."""
    return None if demonstrated is None else replace(demonstrated, base=torch.zeros_like(demonstrated.base))


def from_scratch(method: str, cfg: OffPolicyConfig, p: Problem) -> Run:
    """The run of an actor that learns by itself, with demonstrations in its batches where `cfg` says so.

    Raises:
        UserError: a task with pictures, a learner that is not off-policy.
    """
    refuse_pictures(method, p)
    if cfg.learner == "ppo":
        raise UserError(f"{method} learns with sac or td3.")
    actor, critics = networks(cfg, p, p.obs_size, p.obs_size, p.action_size)
    composition = Takeover()
    learner, explores = learner_of(cfg, p, actor, critics, composition)
    return assemble(
        cfg,
        replace(p, demonstrated=own_actions(p.demonstrated)),
        collector=collector_alone(cfg, p),
        learner=learner,
        explores=explores,
        policy=Alone(p.base, actor, composition),
        monitor=Monitor(),
    )


def collector_alone(cfg: OffPolicyConfig, p: Problem, sees: Literal["newest", "window"] = "newest") -> Collector:
    """Steps the environments with the actor's actions only."""
    nobody, always, ends = Nobody(p.chunk, p.base.context), ProgressiveExploration(0), cfg.success_ends_value
    return Collector(p.env, nobody, Takeover(), always, cfg.reward_shift, p.seed, sees, ends)


def refuse_pictures(method: str, p: Problem) -> None:
    """Raises UserError: a task with pictures."""
    if p.shapes:
        raise UserError(f"{method} has no eyes here: take a task whose observation is the state.")
