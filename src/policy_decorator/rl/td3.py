"""TD3 (arXiv:1802.09477): a deterministic actor that explores with noise of a given size; no entropy, no temperature.

Residuals are refined with it in ResFiT (arXiv:2509.19301). What it shares with SAC is read from `SACConfig`. Two things
are SAC's here and not TD3's: targets follow at every update, and the actor climbs `actor_value`, not the first critic.
"""

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from policy_decorator.rl.bellman import Updating, bootstrapped, regression
from policy_decorator.rl.descent import Descent, follow, penalised
from policy_decorator.rl.ensemble import combined, smallest
from policy_decorator.rl.nets import TanhGaussian
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.selection import Selection
from policy_decorator.types import Composition, Transition


@dataclass(frozen=True)
class TD3Config:
    """Defaults are TD3's. All three are of raw actions, which lie in [-1, 1] before the bound."""

    exploration_std: float = 0.1
    """Standard deviation of the exploration noise."""
    smoothing_std: float = 0.2
    """Standard deviation of the noise on the target's actions."""
    smoothing_limit: float = 0.5
    """Largest noise on the target's actions."""


@dataclass
class Noisy:
    """The deterministic actor as the explorer asks it."""

    actor: TanhGaussian
    std: float

    @property
    def chunk_shape(self) -> tuple[int, int]:
        return self.actor.chunk_shape

    def fresh_noise(self, seen: Tensor) -> Tensor:
        return self.actor.fresh_noise(seen)

    def mode(self, seen: Tensor) -> Tensor:
        return self.actor.mode(seen)

    def __call__(self, seen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, *), (B, Ta * Da) -> raw (B, Ta, Da) in [-1, 1]; zeros (B,), where an actor says its log-probability."""
        raw = self.mode(seen)
        noise = self.fresh_noise(seen) if noise is None else noise
        return (raw + self.std * noise.view_as(raw)).clamp(-1, 1), torch.zeros(len(seen), device=seen.device)


@dataclass
class TD3(Updating):
    """Everything that learns. Of the actor only the mean is used; its standard deviation is not learned."""

    actor: TanhGaussian
    critic: nn.Module  # (B, Do), (B, Ta, *) -> (n_critics, B)
    composition: Composition
    cfg: SACConfig = field(default_factory=SACConfig)
    noise: TD3Config = field(default_factory=TD3Config)
    selection: Selection | None = None  # where the target counts on the better of actor and base alone
    updates: int = 0

    def __post_init__(self) -> None:
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.target_actor = deepcopy(self.actor).requires_grad_(False)
        weight = self.cfg.residual_penalty
        self.penalty = next(self.actor.parameters()).new_tensor(weight) if weight else None
        self.critic_opt = Descent(self.critic.parameters(), self.cfg.lr, self.cfg.max_grad_norm)
        self.actor_opt = Descent(self.actor.parameters(), self.cfg.lr, self.cfg.max_grad_norm)

    def critic_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """Regress on the value of the target actor's next decision, smoothed; also returns Q (n_critics, B)."""
        with torch.no_grad():
            raw = self.target_actor.mode(self.composition.actor_input(b.next_obs, b.next_base))
            limit = self.noise.smoothing_limit
            noise = (self.noise.smoothing_std * torch.randn_like(raw)).clamp(-limit, limit)
            raw = (raw + noise).clamp(-1, 1)
            if self.selection:
                none = raw.new_zeros(1, len(raw))
                raw, _ = self.selection(self.target, b.next_obs, b.next_base, raw[None], none)
            q = self.target(b.next_obs, self.composition.critic_action(b.next_base, raw))
            goal = bootstrapped(b, self.cfg.gamma, smallest(q, self.cfg.critic_subset))
        q = self.critic(b.obs, self.composition.critic_action(b.base, b.raw))
        return regression(q, goal), q.detach()

    def actor_loss(self, b: Transition) -> Tensor:
        """Minus the value of what the actor would do, and the penalty on its size."""
        raw = self.actor.mode(self.composition.actor_input(b.obs, b.base))
        q = combined(self.critic(b.obs, self.composition.critic_action(b.base, raw)), self.cfg.actor_value)
        return penalised(-q, raw, self.penalty).mean()

    def step(self, b: Transition, with_actor: bool) -> dict[str, Tensor]:
        """As `SAC.step`."""
        critic_loss, q = self.critic_loss(b)
        self.critic_opt.down(critic_loss)
        metrics = {"loss/critic": critic_loss, "q/mean": q.mean()}
        if with_actor:
            actor_loss = self.actor_loss(b)
            self.actor_opt.down(actor_loss)
            metrics |= {"loss/actor": actor_loss}
        follow(self.target, self.critic, self.cfg.tau)
        follow(self.target_actor, self.actor, self.cfg.tau)
        return {name: value.detach() for name, value in metrics.items()}
