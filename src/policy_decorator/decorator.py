"""Policy Decorator: a bounded residual action, introduced progressively (paper, Sec. 4).

    pi(s) = pi_base(s) + alpha * pi_res(s)   with probability epsilon     (Eq. 1)
    pi(s) = pi_base(s)                       otherwise,
    epsilon = min(step / H, 1)                                            (Fig. 4)

alpha bounds the correction; H delays it. Set alpha = 1 and H = 0 and this is Residual RL.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from policy_decorator.memory import Around, ask
from policy_decorator.types import Actor, Composition


@dataclass(frozen=True)
class Residual:
    """The actor corrects the base action by at most `bound` (alpha) in every dimension."""

    bound: float
    actor_sees: Literal["obs", "obs+base"] = "obs"  # Sec. 4.3, Fig. 19
    critic_sees: Literal["sum", "concat", "residual"] = "sum"  # Sec. 4.3, Fig. 20

    def actor_input(self, obs: Tensor, base: Tensor) -> Tensor:
        return obs if self.actor_sees == "obs" else torch.cat([obs, base.flatten(1)], dim=-1)

    def execute(self, base: Tensor, raw: Tensor) -> Tensor:
        return base + self.bound * raw  # unclipped, as in the released code: the environment clips

    def critic_action(self, base: Tensor, raw: Tensor) -> Tensor:
        if self.critic_sees == "residual":
            return raw
        return self.execute(base, raw) if self.critic_sees == "sum" else torch.cat([raw, base], dim=-1)

    def idle(self, base: Tensor) -> Tensor:
        return torch.zeros_like(base)


@dataclass(frozen=True)
class ProgressiveExploration:
    """Opens with probability epsilon, drawn anew for every environment at every decision (Eq. 1)."""

    horizon: int
    """H: environment steps over which epsilon grows from 0 to 1; 0 opens at once."""
    start: int = 0
    """Environment steps before epsilon begins to grow."""

    def epsilon(self, step: int) -> float:
        if step < self.start:
            return 0.0
        return min((step - self.start) / self.horizon, 1.0) if self.horizon else 1.0

    def __call__(self, step: int, episode_step: Tensor) -> Tensor:
        return torch.rand(episode_step.shape, device=episode_step.device) < self.epsilon(step)


@dataclass(frozen=True)
class DecoratedPolicy(Around):
    """Base policy and residual as one policy: itself a base policy, so decorators stack."""

    actor: Actor
    composition: Composition

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da); the residual sees the newest frame and acts by its mean."""
        base = ask(self.base, window, rows)
        raw = self.actor.mode(self.composition.actor_input(window[:, -1], base))
        return self.composition.execute(base, raw)
