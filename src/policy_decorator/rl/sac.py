"""Soft Actor-Critic (arXiv:1812.05905) as three losses and one update.

The losses see actions only through a `Composition`: they never learn that they train a residual.
"""

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from policy_decorator.rl.bellman import Updating, bootstrapped, regression
from policy_decorator.rl.descent import Descent, follow, penalised
from policy_decorator.rl.ensemble import combined, smallest
from policy_decorator.rl.selection import Selection
from policy_decorator.rl.settings import SACConfig
from policy_decorator.types import Composition, Transition


@dataclass
class SAC(Updating):
    """Everything that learns, and nothing else."""

    actor: nn.Module  # what it sees (B, *) -> raw (B, Ta, Da), log-probability (B,)
    critic: nn.Module  # (B, Do), (B, Ta, *) -> (n_critics, B)
    composition: Composition
    action_size: int  # Ta * Da
    cfg: SACConfig = field(default_factory=SACConfig)
    selection: Selection | None = None  # where the target counts on the better of actor and base alone
    updates: int = 0

    def __post_init__(self) -> None:
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = next(self.actor.parameters()).new_tensor(self.cfg.temperature).log().requires_grad_()
        self.penalty = self.log_temperature.new_tensor(self.cfg.residual_penalty) if self.cfg.residual_penalty else None
        self.critic_opt = Descent(self.critic.parameters(), self.cfg.lr, self.cfg.max_grad_norm)
        learned = (p for p in self.actor.parameters() if p.requires_grad)
        self.actor_opt = Descent(learned, self.cfg.lr, self.cfg.max_grad_norm)
        its_lr = self.cfg.lr if self.cfg.temperature_lr is None else self.cfg.temperature_lr
        self.temperature_opt = Descent([self.log_temperature], its_lr, self.cfg.max_grad_norm)

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.detach().exp()

    def critic_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """Eq. 5-6: regress on the soft value of the next decision; also returns Q (n_critics, B)."""
        with torch.no_grad():
            raw, log_prob = self.actor(self.composition.actor_input(b.next_obs, b.next_base))
            if self.selection:
                raw, log_prob = self.selection(self.target, b.next_obs, b.next_base, raw[None], log_prob[None])
            q = self.target(b.next_obs, self.composition.critic_action(b.next_base, raw))
            value = smallest(q, self.cfg.critic_subset) - self.temperature * log_prob * self.cfg.entropy_in_backup
            goal = bootstrapped(b, self.cfg.gamma, value)
        q = self.critic(b.obs, self.composition.critic_action(b.base, b.raw))
        return regression(q, goal), q.detach()

    def actor_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """Eq. 7; also returns the log-probabilities for the temperature."""
        raw, log_prob = self.actor(self.composition.actor_input(b.obs, b.base))
        q = combined(self.critic(b.obs, self.composition.critic_action(b.base, raw)), self.cfg.actor_value)
        return penalised(self.temperature * log_prob - q, raw, self.penalty).mean(), log_prob.detach()

    def temperature_loss(self, log_prob: Tensor) -> Tensor:
        """Eq. 18 on log alpha, as the released code."""
        return -(self.log_temperature * (log_prob + self.cfg.target_entropy * self.action_size)).mean()

    def step(self, b: Transition, with_actor: bool) -> dict[str, Tensor]:
        """All of an update that is done with tensors; `rl.compiled` and `rl.captured` run it in other ways."""
        critic_loss, q = self.critic_loss(b)
        self.critic_opt.down(critic_loss)
        metrics = {"loss/critic": critic_loss, "q/mean": q.mean(), "sac/temperature": self.temperature}
        if with_actor:
            actor_loss, log_prob = self.actor_loss(b)
            self.actor_opt.down(actor_loss)
            self.temperature_opt.down(self.temperature_loss(log_prob))
            metrics |= {"loss/actor": actor_loss, "sac/entropy": -log_prob.mean()}
        follow(self.target, self.critic, self.cfg.tau)
        return {name: value.detach() for name, value in metrics.items()}
