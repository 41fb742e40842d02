"""Implicit Q-learning (arXiv:2110.06169): values of the data's better actions, without asking the policy for any.

L_V = |tau - 1(u < 0)| u^2,  u = min Q(s, a) - V(s)        (Eq. 5)
L_Q = (r + gamma V(s') - Q(s, a))^2                         (Eq. 6)
L_pi = -min(exp(beta u), most) log pi(a | s)                (Eq. 7)
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
class IQLConfig:
    """Defaults are CORL's for Adroit."""

    expectile: float = 0.8
    """tau of L_V: 0.5 is the mean of the data's actions, 1 their best."""
    advantage_sharpness: float = 3.0
    """beta: how much more a better action is imitated; 0 is behaviour cloning."""
    most_weight: float = 100.0
    """Largest weight of an action."""


def expectile_loss(u: Tensor, expectile: float) -> Tensor:
    """|tau - 1(u < 0)| u^2, elementwise; its minimum over a constant is the tau-expectile."""
    return torch.where(u < 0, 1 - expectile, expectile) * u**2


@dataclass
class IQL(Updating):
    """Everything that learns. `value` is asked for (B, Do) and actions of no size, (B, 0)."""

    actor: BoundedGaussian
    critic: nn.Module  # (B, Do), (B, Ta, *) -> (n_critics, B)
    value: nn.Module  # (B, Do), (B, 0) -> (1, B)
    composition: Composition
    cfg: SACConfig = field(default_factory=SACConfig)
    """Read for gamma, tau, lr, batch_size, actor_every, critic_subset and max_grad_norm."""
    iql: IQLConfig = field(default_factory=IQLConfig)
    updates: int = 0

    def __post_init__(self) -> None:
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.critic_opt, self.value_opt, self.actor_opt = (
            Descent(net.parameters(), self.cfg.lr, self.cfg.max_grad_norm)
            for net in (self.critic, self.value, self.actor)
        )

    def v(self, obs: Tensor) -> Tensor:
        """(B, Do) -> (B,)."""
        return self.value(obs, obs[:, :0])[0]

    @torch.no_grad()
    def data_value(self, b: Transition) -> Tensor:
        """(B,): the target critics' word on the data's actions."""
        return smallest(self.target(b.obs, self.composition.critic_action(b.base, b.raw)), self.cfg.critic_subset)

    def value_loss(self, b: Transition) -> Tensor:
        return expectile_loss(self.data_value(b) - self.v(b.obs), self.iql.expectile).mean()

    def critic_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """Also returns Q (n_critics, B)."""
        with torch.no_grad():
            goal = bootstrapped(b, self.cfg.gamma, self.v(b.next_obs))
        q = self.critic(b.obs, self.composition.critic_action(b.base, b.raw))
        return regression(q, goal), q.detach()

    def actor_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """Also returns the weights (B,)."""
        with torch.no_grad():
            advantage = self.data_value(b) - self.v(b.obs)
        weight = weights(advantage, self.iql.advantage_sharpness, self.iql.most_weight)
        seen = self.composition.actor_input(b.obs, b.base)
        return weighted_likelihood(self.actor, seen, b.raw, weight), weight

    def step(self, b: Transition, with_actor: bool) -> dict[str, Tensor]:
        """In the released code's order: V, then what is weighted and regressed with it."""
        value_loss = self.value_loss(b)
        self.value_opt.down(value_loss)
        metrics = {"loss/value": value_loss}
        if with_actor:
            actor_loss, weight = self.actor_loss(b)
            self.actor_opt.down(actor_loss)
            seen = self.composition.actor_input(b.obs, b.base)
            metrics |= {"loss/actor": actor_loss, "iql/weight": weight.mean(), "iql/entropy": entropy(self.actor, seen)}
        critic_loss, q = self.critic_loss(b)
        self.critic_opt.down(critic_loss)
        follow(self.target, self.critic, self.cfg.tau)
        metrics |= {"loss/critic": critic_loss, "q/mean": q.mean()}
        return {name: x.detach() for name, x in metrics.items()}
