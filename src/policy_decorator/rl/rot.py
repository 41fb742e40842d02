"""Regularised optimal transport (ROT, arXiv:2206.15469): what its learner has beside SAC.

    L_actor = (1 - lambda) E[alpha log pi(a | o) - min Q(o, a)] - lambda w E[log pi(a' | o')]     (o', a') demonstrated
    lambda  = share of the batch in which min Q(o, a_base) > min Q(o, a)                     (the soft Q-filter)

The policy looks at windows and answers at every frame of them; all these answers are regularised (paper, B.5.1).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from policy_decorator.rl.descent import penalised
from policy_decorator.rl.ensemble import combined, smallest
from policy_decorator.rl.lora import Adapted, LoRAConfig
from policy_decorator.rl.nets import NetConfig, Standardize, log_normal
from policy_decorator.rl.sac import SAC
from policy_decorator.rl.stacked import StackedMLP
from policy_decorator.rl.windows import unflattened
from policy_decorator.types import Transition


class Answers(Protocol):
    """A policy with gradients: (B, To, Do) -> an action (B, T, Da) for each of its last T frames.

    `actions` (B, To, Da) say which of several modes is meant, where there are any.
    """

    def means(self, window: Tensor, actions: Tensor | None = None) -> Tensor: ...


class WindowActor(Adapted):
    """A Gaussian around the answers of a policy that goes on learning, with one standard deviation everywhere.

    It explores with `std` at first, and imitates with `std` for good: the imitation's weight belongs to it. With
    settings of LoRA only corrections of the policy's `lora_layers` learn.
    """

    def __init__(
        self, policy: nn.Module, obs_size: int, chunk: tuple[int, int], std: float, lora: LoRAConfig | None = None
    ) -> None:
        super().__init__(policy, getattr(policy, "lora_layers", ()), lora)
        self.obs_size, self.chunk_shape, self.std = obs_size, chunk, std
        self.log_std = nn.Parameter(torch.full((math.prod(chunk),), math.log(std)))

    @property
    def answers(self) -> Answers:
        return self.policy

    def forward(self, seen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Flattened windows (B, To * Do) -> a sample (B, 1, Da) in [-1, 1], and its log-density (B,) before clipping.

        Gradients pass the clipping of the noise as if there were none, as in ROT's code, whose mean is a tanh. Here the
        mean is clipped for good: an answer beyond the limits would be driven further and further out, for nothing.
        """
        mean = self.answers.means(unflattened(seen, self.obs_size))[:, -1].clamp(-1, 1)  # (B, Da)
        noise = self.fresh_noise(seen) if noise is None else noise
        u = mean + self.log_std.exp() * noise
        raw = u + (u.clamp(-1, 1) - u).detach()
        return raw.unflatten(-1, self.chunk_shape), log_normal(noise, self.log_std).sum(-1)

    def log_density(self, window: Tensor, actions: Tensor) -> Tensor:
        """(B, To, Do), (B, To, Da) -> (B,), with `std`, the mean over the frames for which the policy answers."""
        mean = self.answers.means(window, actions)  # (B, T, Da)
        noise = (actions[:, -mean.shape[1] :] - mean) / self.std
        return log_normal(noise, torch.full_like(self.log_std, math.log(self.std))).sum(-1).mean(-1)

    def fresh_noise(self, seen: Tensor) -> Tensor:
        """Standard normal, (B, Da)."""
        return torch.randn(len(seen), len(self.log_std), device=seen.device)

    @torch.no_grad()
    def mode(self, seen: Tensor) -> Tensor:
        """(B, To * Do) -> the policy's own action (B, 1, Da)."""
        return self.act(unflattened(seen, self.obs_size))


class TrunkCritics(nn.Module):
    """Q functions behind one layer that they share, the trunk: where distances of optimal transport are measured."""

    def __init__(self, obs_size: int, action_size: int, trunk: int, cfg: NetConfig) -> None:
        super().__init__()
        self.obs_size = obs_size
        self.standardize = Standardize(obs_size)
        self.trunk = nn.Sequential(nn.Linear(obs_size, trunk), nn.LayerNorm(trunk), nn.Tanh())
        sizes = (trunk + action_size, *(cfg.width,) * cfg.depth, 1)
        self.net = StackedMLP(
            cfg.critics, sizes, cfg.head_gain, layer_norm=cfg.critic_layer_norm, hidden_dtype=cfg.hidden_dtype
        )

    def look(self, obs: Tensor) -> Tensor:
        """(B, Do) or flattened windows (B, To * Do), of which the newest frame counts -> (B, trunk)."""
        return self.trunk(self.standardize(obs[:, -self.obs_size :]))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(B, ...), (B, Ta, Da) -> (n, B)."""
        return self.net(torch.cat([self.look(obs), action.flatten(1)], dim=-1)).squeeze(-1)


class ShownWindows(NamedTuple):
    """All windows of the demonstrations."""

    obs: Tensor  # (N, To, Do)
    actions: Tensor  # (N, To, Da)


@dataclass
class ROT(SAC):
    """SAC whose actor also imitates, as far as the base does better. In its batches `base` is the base's own action."""

    actor: WindowActor  # pyright: ignore[reportIncompatibleVariableOverride]
    shown: ShownWindows = field(kw_only=True)
    weight: float = field(default=0.03, kw_only=True)
    """w."""
    shown_batch: int = field(default=128, kw_only=True)
    """Demonstrated windows per update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.imitating = torch.zeros_like(self.log_temperature.detach())  # lambda, as it was last

    def actor_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """L_actor; also returns the log-densities for the temperature."""
        raw, log_prob = self.actor(b.obs)
        q = self.critic(b.obs, raw)
        with torch.no_grad():
            better = smallest(self.critic(b.obs, b.base)) > smallest(q)
            self.imitating.copy_(better.float().mean())
        learned = penalised(self.temperature * log_prob - combined(q, self.cfg.actor_value), raw, self.penalty).mean()
        rows = torch.randint(len(self.shown.obs), (self.shown_batch,), device=raw.device)
        imitated = -self.weight * self.actor.log_density(self.shown.obs[rows], self.shown.actions[rows]).mean()
        share = self.imitating.clone()
        return (1 - share) * learned + share * imitated, log_prob.detach()

    def step(self, b: Transition, with_actor: bool) -> dict[str, Tensor]:
        """As SAC's."""
        return super().step(b, with_actor) | {"rot/imitating": self.imitating.clone()}
