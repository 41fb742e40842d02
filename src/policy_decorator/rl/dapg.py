"""Demonstration-augmented policy gradient (arXiv:1709.10087): a natural gradient that also imitates, ever less.

    g = mean of A grad log pi of own decisions and w grad log pi of demonstrated ones together,  w = lambda_0 lambda_1^k

A are normalised advantages, k counts rounds. As in the released code the demonstrations' weight is not multiplied by
the largest advantage, as the paper's Eq. 5 says. Differs from both: of a round without any reward only the
demonstrations are learned from, as normalised advantages would be the value's noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn

from policy_decorator.rl.descent import Descent
from policy_decorator.rl.ppo import PPO, tells_apart
from policy_decorator.rl.weighted import BoundedGaussian
from policy_decorator.types import Transition


@dataclass(frozen=True)
class DAPGConfig:
    """Defaults are the released code's, apart from `rollout` (its 200 episodes per round are 40,000 decisions) and
    `value_epochs` (2)."""

    rollout: int = 64
    """Decisions of every environment per round."""
    gae_lambda: float = 0.97
    """lambda of the advantages."""
    demo_weight: float = 0.01
    """lambda_0: weight of the demonstrations' log-likelihood in the first round; 0: the natural gradient alone."""
    demo_decay: float = 0.95
    """lambda_1: what it is multiplied by after every round. The step of a round without reward, which only imitates, is
    as long for any weight."""
    normalized_step: float = 0.05
    """delta: twice the divergence between the policies before and after a round."""
    damping: float = 1e-4
    """Added to the diagonal of F."""
    conjugate_gradients: int = 10
    """Iterations with which F^-1 g is found."""
    value_epochs: int = 4
    """Passes over a round's decisions with which the value function learns."""
    value_batch: int = 64
    """Decisions per gradient step of the value function, and demonstrated ones per step of behaviour cloning."""
    cloning_lr: float = 1e-3
    """Learning rate of behaviour cloning, before the first environment step."""


@dataclass
class DAPG(PPO):
    """`shown` are the demonstrations; what PPO says of clipping and epochs is not used."""

    shown: Transition | None = field(default=None, kw_only=True)
    dapg: DAPGConfig = field(default_factory=DAPGConfig, kw_only=True)

    def __post_init__(self) -> None:
        self.weight = next(self.actor.parameters()).new_tensor(self.dapg.demo_weight)  # lambda_0 lambda_1^k
        self.critic_optimizer = Descent(self.critic.parameters(), self.cfg.lr, self.cfg.max_grad_norm)
        self.cloning_opt = Descent(self.actor.parameters(), self.dapg.cloning_lr, math.inf)

    def log_density(self, seen: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(raw | seen) and the entropy up to a constant, (N,) each."""
        actor = cast(BoundedGaussian, self.actor)
        return actor.log_density(seen, raw), actor.gaussian(seen)[1].sum(-1)

    def divergence(self, seen: Tensor) -> Tensor:
        """Mean KL of the policy as it is from itself: zero, with the Fisher matrix as its curvature."""
        mean, log_std = self.actor.gaussian(seen)
        now = torch.distributions.Normal(mean.tanh(), log_std.exp())
        fixed = torch.distributions.Normal(now.loc.detach(), now.scale.detach())
        return torch.distributions.kl_divergence(fixed, now).sum(-1).mean()

    def surrogate(self, seen: Tensor, raw: Tensor, advantage: Tensor) -> Tensor:
        """Mean of A log pi over own decisions and of weight * log pi over demonstrated ones, all counted alike."""
        terms = [advantage * self.log_density(seen, raw)[0]]
        if self.shown is not None:
            theirs = self.composition.actor_input(self.shown.obs, self.shown.base)
            terms.append(self.weight * self.log_density(theirs, self.shown.raw)[0])
        return torch.cat(terms).mean()

    def natural(self, gradient: Tensor, seen: Tensor) -> Tensor:
        """(P,) -> F^-1 g (P,), by conjugate gradients."""
        params = list(self.actor.parameters())
        slope = _flat(torch.autograd.grad(self.divergence(seen), params, create_graph=True))

        def product(v: np.ndarray) -> np.ndarray:
            along = (slope * gradient.new_tensor(v).flatten()).sum()
            out = _flat(torch.autograd.grad(along, params, retain_graph=True))
            return out.double().cpu().numpy() + self.dapg.damping * v.flatten()

        operator: Any = LinearOperator
        fisher = operator((len(gradient), len(gradient)), matvec=product, dtype=np.float64)
        found, _ = cg(fisher, gradient.double().cpu().numpy(), maxiter=self.dapg.conjugate_gradients)
        return gradient.new_tensor(found)

    def learn(self, t: Transition, done: Tensor) -> dict[str, Tensor]:
        """One round on decisions (T, B, ...) of the policy as it is: its step, then the value function's."""
        seen, raw, _, advantage, goal = self._prepare(t, done)
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8) * tells_apart(t)
        params = list(self.actor.parameters())
        gain = self.surrogate(seen, raw, advantage)
        gradient = _flat(torch.autograd.grad(gain, params))
        direction = self.natural(gradient, seen)
        slope = (gradient * direction).sum()
        # Where rewards are all alike and nothing is imitated there is no direction.
        size = torch.where(slope > 0, (self.dapg.normalized_step / slope.clamp(min=1e-20)).sqrt(), 0.0)
        before = self.actor.gaussian(seen)
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(params).detach() + size * direction, params)
        self.updates += 1
        facts = {"loss/actor": -gain, "dapg/kl": self._moved(before, seen), "dapg/demo_weight": self.weight.clone()}
        self.weight *= self.dapg.demo_decay
        return {name: x.detach() for name, x in (facts | self._fit(seen, goal)).items()}

    @torch.no_grad()
    def _moved(self, before: tuple[Tensor, Tensor], seen: Tensor) -> Tensor:
        after = self.actor.gaussian(seen)
        one, two = (torch.distributions.Normal(mean.tanh(), log_std.exp()) for mean, log_std in (before, after))
        return torch.distributions.kl_divergence(one, two).sum(-1).mean()

    def _fit(self, seen: Tensor, goal: Tensor) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        for _ in range(self.dapg.value_epochs):
            for rows in torch.randperm(len(goal), device=goal.device).split(self.dapg.value_batch):
                metrics = self._descend_critic(seen[rows], goal[rows])
        return metrics

    def clone(self, b: Transition) -> dict[str, Tensor]:
        """One step of behaviour cloning: the mean towards what was done. The standard deviation is left as it is."""
        mode = self.actor.mode(self.composition.actor_input(b.obs, b.base))
        loss = ((mode - b.raw) ** 2).mean()
        self.cloning_opt.down(loss)
        return {"loss/cloning": loss.detach()}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


@dataclass
class Cloning:
    """The behaviour cloning before the first round, with a count of its own."""

    learner: DAPG
    updates: int = 0

    def update(self, b: Transition) -> dict[str, Tensor]:
        self.updates += 1
        return self.learner.clone(b)
