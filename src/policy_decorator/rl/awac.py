"""Advantage-weighted actor-critic (arXiv:2006.09359): imitate what was done, the more the better it was.

    L_Q = (r + gamma min Q(s', a') - Q(s, a))^2,  a' ~ pi                                        (Eq. 3)
    L_pi = -min(exp(A / lambda), most) log pi(a | s),  A = min Q(s, a) - min Q(s, a''),  a'' ~ pi  (Eq. 13)

Differs from the paper: weights are not normalised over the batch, as in CORL.
"""

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from policy_decorator.rl.bellman import Updating, bootstrapped, regression
from policy_decorator.rl.descent import Descent, follow
from policy_decorator.rl.ensemble import smallest
from policy_decorator.rl.settings import SACConfig
from policy_decorator.rl.weighted import BoundedGaussian, entropy, weighted_likelihood, weights
from policy_decorator.types import Composition, Transition


@dataclass(frozen=True)
class AWACConfig:
    """Defaults are CORL's for Adroit."""

    advantage_temperature: float = 0.1
    """lambda: the smaller, the less of a worse action is imitated (1 in the paper's other tasks)."""
    most_weight: float = 100.0
    """Largest weight of an action."""


@dataclass
class AWAC(Updating):
    """Everything that learns."""

    actor: BoundedGaussian
    critic: nn.Module  # (B, Do), (B, Ta, *) -> (n_critics, B)
    composition: Composition
    cfg: SACConfig = field(default_factory=SACConfig)
    """Read for gamma, tau, lr, batch_size, actor_every, critic_subset and max_grad_norm."""
    awac: AWACConfig = field(default_factory=AWACConfig)
    updates: int = 0

    def __post_init__(self) -> None:
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.critic_opt, self.actor_opt = (
            Descent(net.parameters(), self.cfg.lr, self.cfg.max_grad_norm) for net in (self.critic, self.actor)
        )

    def critic_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """Also returns Q (n_critics, B)."""
        with torch.no_grad():
            raw, _ = self.actor(self.composition.actor_input(b.next_obs, b.next_base))
            value = smallest(
                self.target(b.next_obs, self.composition.critic_action(b.next_base, raw)), self.cfg.critic_subset
            )
            goal = bootstrapped(b, self.cfg.gamma, value)
        q = self.critic(b.obs, self.composition.critic_action(b.base, b.raw))
        return regression(q, goal), q.detach()

    @torch.no_grad()
    def advantage(self, b: Transition) -> Tensor:
        """(B,): how much better what was done is than one action of the policy."""
        raw, _ = self.actor(self.composition.actor_input(b.obs, b.base))
        done, would = (smallest(self.critic(b.obs, self.composition.critic_action(b.base, x))) for x in (b.raw, raw))
        return done - would

    def actor_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """Also returns the weights (B,)."""
        weight = weights(self.advantage(b), 1 / self.awac.advantage_temperature, self.awac.most_weight)
        seen = self.composition.actor_input(b.obs, b.base)
        return weighted_likelihood(self.actor, seen, b.raw, weight), weight

    def step(self, b: Transition, with_actor: bool) -> dict[str, Tensor]:
        """As `SAC.step`."""
        critic_loss, q = self.critic_loss(b)
        self.critic_opt.down(critic_loss)
        metrics = {"loss/critic": critic_loss, "q/mean": q.mean()}
        if with_actor:
            actor_loss, weight = self.actor_loss(b)
            self.actor_opt.down(actor_loss)
            seen = self.composition.actor_input(b.obs, b.base)
            metrics |= {
                "loss/actor": actor_loss,
                "awac/weight": weight.mean(),
                "awac/entropy": entropy(self.actor, seen),
            }
        follow(self.target, self.critic, self.cfg.tau)
        return {name: x.detach() for name, x in metrics.items()}
