"""PPO on a whole policy: its action is the mean of a Gaussian whose deviation is learned (paper App. D.3).

pi(a | o) = N(mean(o), diag(std^2))     mean: the tuned policy's action before it is clipped; std: one per number
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from policy_decorator.rl.ppo import PPO
from policy_decorator.rl.windows import unflattened
from policy_decorator.types import Transition


class GaussianActor(nn.Module):
    """A Gaussian around a deterministic policy of windows, `policy.means`: (B, To, Do) -> (B, Ta, Da), differentiable.

    What it sees is the flattened window (B, To * Do). Its deviation (Ta * Da,) does not depend on that.
    """

    def __init__(self, policy: nn.Module, chunk: tuple[int, int], obs_size: int, std: float) -> None:
        super().__init__()
        self.policy, self.chunk_shape, self.obs_size = policy, chunk, obs_size
        self.log_std = nn.Parameter(torch.full((math.prod(chunk),), math.log(std)))

    def distribution(self, seen: Tensor) -> Independent:
        """Of actions (B, Ta * Da)."""
        policy: Any = self.policy
        mean = policy.means(unflattened(seen, self.obs_size), newest_only=True).flatten(1)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean), validate_args=False), 1)

    def forward(self, seen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, To * Do) -> a sample (B, Ta, Da), not clipped, and its log-probability (B,)."""
        around = self.distribution(seen)
        noise = self.fresh_noise(seen) if noise is None else noise
        action = around.mean + around.stddev * noise
        return action.unflatten(-1, self.chunk_shape), around.log_prob(action)

    def fresh_noise(self, seen: Tensor) -> Tensor:
        """Standard normal, (B, Ta * Da)."""
        return torch.randn(len(seen), math.prod(self.chunk_shape), device=seen.device)

    def mode(self, seen: Tensor) -> Tensor:
        """(B, To * Do) -> the mean (B, Ta, Da)."""
        return self.distribution(seen).mean.unflatten(-1, self.chunk_shape)

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da), as the policy acts by itself."""
        policy: Any = self.policy
        return policy.act(window)

    def merged(self) -> nn.Module:
        """A copy of the policy by itself."""
        return copy.deepcopy(self.policy)


@dataclass
class GaussianPPO(PPO):
    """PPO of a `GaussianActor`. The value sees the newest frame, and learns alone in the first rounds."""

    actor: GaussianActor  # pyright: ignore[reportIncompatibleVariableOverride]
    critic_rounds: int = 0
    rounds: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def values(self, seen: Tensor) -> Tensor:
        """(N, To * Do) -> (N,), in units of 1 / (1 - gamma)."""
        return super().values(seen[..., -self.actor.obs_size :])

    def log_density(self, seen: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a | o) and the entropy, (N,) each."""
        around = self.actor.distribution(seen)
        return around.log_prob(raw.flatten(1)), around.entropy()

    def learn(self, t: Transition, done: Tensor) -> dict[str, Tensor]:
        """A round of updates on decisions (T, B, ...) of the policy as it is."""
        metrics = super().learn(t, done)
        self.rounds += 1
        return metrics

    def _spoken(self, t: Transition) -> Tensor:
        spoken = super()._spoken(t)
        return spoken if self.rounds >= self.critic_rounds else spoken[:0]
