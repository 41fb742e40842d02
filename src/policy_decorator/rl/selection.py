"""Actions chosen by their value: the residual speaks only where the critics prefer that to the base alone.

IBRL (arXiv:2311.02198) chooses so between imitation and reinforcement learning, EXPO (arXiv:2507.07986) among the
actions of a base and edits of them. It is as good as the critics: where they overestimate they choose badly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from policy_decorator.rl.ensemble import Value, combined
from policy_decorator.rl.exploration import Sampler
from policy_decorator.rl.nets import Critics
from policy_decorator.types import Composition


class Proposer(Sampler, Protocol):
    """An actor: samples and a mode."""

    @property
    def chunk_shape(self) -> tuple[int, int]: ...
    def mode(self, seen: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Selection:
    """The base alone or one of K residuals, whichever has the largest value; the base where none has a larger one."""

    composition: Composition
    value: Value = "min"

    @torch.no_grad()
    def __call__(
        self, critic: Callable[[Tensor, Tensor], Tensor], obs: Tensor, base: Tensor, raw: Tensor, log_prob: Tensor
    ) -> tuple[Tensor, Tensor]:
        """raw (K, B, Ta, Da), its log-probability (K, B) -> the best (B, Ta, Da), (B,); 0 and 0 for the base alone."""
        raw = torch.cat([self.composition.idle(base)[None], raw])
        log_prob = torch.cat([torch.zeros_like(log_prob[:1]), log_prob])
        n, rows = len(raw), torch.arange(len(obs), device=obs.device)
        action = self.composition.critic_action(base.repeat(n, 1, 1), raw.flatten(0, 1))
        value = combined(critic(obs.repeat(n, 1), action), self.value).view(n, -1)  # (1 + K, B)
        best = value[1:].argmax(dim=0) + 1
        best = torch.where(value[best, rows] > value[0], best, 0)
        return raw[best, rows], log_prob[best, rows]


class ValueSelected(nn.Module):
    """An actor behind a `Selection`. What it sees is the observation and the base action, (B, Do + Ta * Da)."""

    def __init__(self, actor: Proposer, critic: Critics, selection: Selection, samples: int = 1) -> None:
        """`samples`: K, residuals to choose among when exploring; of means there is one."""
        super().__init__()
        self.actor, self.critic, self.selection, self.samples = actor, critic, selection, samples

    def forward(self, seen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The best of K samples and of the base alone (B, Ta, Da); noise (K, B, Ta * Da) is fresh unless given."""
        obs, base, inner = self._split(seen)
        noise = self.fresh_noise(seen) if noise is None else noise
        raw, log_prob = zip(*(self.actor(inner, one) for one in noise), strict=True)
        return self.selection(self.critic, obs, base, torch.stack(raw), torch.stack(log_prob))

    def fresh_noise(self, seen: Tensor) -> Tensor:
        return torch.stack([self.actor.fresh_noise(seen) for _ in range(self.samples)])

    def mode(self, seen: Tensor) -> Tensor:
        """The better of the most likely raw action and of the base alone."""
        obs, base, inner = self._split(seen)
        return self.selection(self.critic, obs, base, self.actor.mode(inner)[None], obs.new_zeros(1, len(obs)))[0]

    def _split(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        obs_size = len(self.critic.standardize.mean)
        obs, base = seen[:, :obs_size], seen[:, obs_size:].unflatten(-1, self.actor.chunk_shape)
        return obs, base, self.selection.composition.actor_input(obs, base)
