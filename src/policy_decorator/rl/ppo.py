"""Proximal Policy Optimization (arXiv:1707.06347) as the learner of a residual (paper App. D.3).

    A_t = sum_k (gamma lambda)^k delta_{t+k},   delta_t = r_t + gamma V(o_{t+1}) - V(o_t)          (arXiv:1506.02438)
    loss   = -min(rho A, clip(rho, 1 - c, 1 + c) A) - w_H H,   rho = pi(a | o) / pi_old(a | o)
    loss_V = (V - A - V_old)^2

The policy is the behaviour as it is collected: where the gate lets the base act alone, what follows tells the value
function about that state and says nothing about the residual. A is normalised over the decisions at which it spoke.

Differs from ManiSkill's baseline: actor and value have an optimiser each, so that the actor can rest while the value
learns. It does where nothing in a round was rewarded, as the normalised advantages would be the value's noise at full
size; and when few decisions were the residual's, its updates are as few.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor, nn

from policy_decorator.errors import UserError
from policy_decorator.rl.descent import Descent
from policy_decorator.rl.nets import TanhGaussian
from policy_decorator.rl.sac import SACConfig
from policy_decorator.types import Composition, Transition

EDGE = 1 - 1e-6
"""Largest |raw| of which the value before tanh is computed."""


@dataclass(frozen=True)
class PPOConfig:
    """The paper names no settings of its PPO: these are usual ones (ManiSkill's baseline, arXiv:1707.06347)."""

    rollout: int = 64
    """Decisions of every environment between two rounds of updates."""
    epochs: int = 4
    """Passes over them."""
    minibatches: int = 8
    """Parts a pass is made in."""
    gae_lambda: float = 0.95
    """lambda: 0 trusts the value function, 1 the returns."""
    clip: float = 0.2
    """c: how far a probability ratio counts."""
    entropy_weight: float = 0.0
    """w_H, on the entropy before tanh."""
    target_kl: float | None = 0.1
    """No further pass once the policy has moved this far from the one that collected; None: all of them."""

    def __post_init__(self) -> None:
        if min(self.rollout, self.epochs, self.minibatches) < 1:
            raise UserError("rollout, epochs and minibatches of PPO must be at least 1.")

    def far(self, metrics: Mapping[str, Tensor]) -> bool:
        """Whether the policy has moved so far from the one that collected that the round ends."""
        kl = metrics.get("ppo/kl")
        return self.target_kl is not None and kl is not None and bool(kl > self.target_kl)


def advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimates; all (T, B), `done` where an episode ended, for whatever reason."""
    delta = reward + gamma * (1 - terminated) * next_value - value
    out, running = torch.empty_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        out[t] = running = delta[t] + gamma * lam * (1 - done[t]) * running
    return out


def tells_apart(t: Transition) -> Tensor:
    """Whether a round of decisions (T, B, ...) says that some were better than others: a bool (). Not if none was
    rewarded otherwise than the rest and none ended an episode for good."""
    return (t.reward != t.reward[:1, :1]).any() | (t.terminated > 0).any()


class Rollouts:
    """The decisions of all environments since the last round of updates, in their order."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.decisions: list[tuple[Transition, Tensor]] = []  # each of B rows, with done (B,)

    def push(self, t: Transition, done: Tensor) -> None:
        """Take one decision, `done` (B,) bool where its episode ended."""
        self.decisions.append((t, done.to(t.reward)))

    @property
    def full(self) -> bool:
        return len(self.decisions) >= self.length

    def take(self) -> tuple[Transition, Tensor]:
        """All of them, (T, B, ...), and done (T, B); none are left."""
        steps, done = zip(*self.decisions, strict=True)
        self.decisions = []
        return Transition(*(torch.stack(xs) for xs in zip(*steps, strict=True))), torch.stack(done)

    def state(self) -> list[tuple[Tensor, ...]]:
        return [(*t, done) for t, done in self.decisions]

    def restore(self, state: list[tuple[Tensor, ...]]) -> None:
        self.decisions = [(Transition(*columns[:-1]), columns[-1]) for columns in state]


@dataclass
class PPO:
    """Actor and value function, which sees what the actor sees, with an optimiser each."""

    actor: TanhGaussian
    critic: nn.Module  # what the actor sees (N, *), nothing (N, 0) -> (1, N)
    composition: Composition
    cfg: SACConfig = field(default_factory=SACConfig)
    """Read for gamma, the learning rate and the gradient norm at which each of both is clipped."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    updates: int = 0

    def __post_init__(self) -> None:
        self.actor_optimizer = Descent(self.actor.parameters(), self.cfg.lr, self.cfg.max_grad_norm)
        self.critic_optimizer = Descent(self.critic.parameters(), self.cfg.lr, self.cfg.max_grad_norm)

    def values(self, seen: Tensor) -> Tensor:
        """(..., *) -> (...), in units of 1 / (1 - gamma): between -1 and 1 for rewards between -1 and 1."""
        flat = seen.flatten(0, -2)
        return self.critic(flat, flat[:, :0])[0].view(seen.shape[:-1])

    def log_density(self, seen: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """log N(atanh raw) and the entropy of N, (N,) each. Of log-ratios tanh's own part cancels."""
        mean, log_std = self.actor.gaussian(seen)
        noise = (raw.flatten(1).clamp(-EDGE, EDGE).atanh() - mean) / log_std.exp()
        return (-0.5 * noise**2 - log_std).sum(-1), log_std.sum(-1)

    def learn(self, t: Transition, done: Tensor) -> dict[str, Tensor]:
        """A round of updates on decisions (T, B, ...) of the policy as it is."""
        seen, raw, old, advantage, goal = self._prepare(t, done)
        spoken = self._spoken(t)
        if len(spoken):
            of_actor = advantage[spoken]
            advantage = (advantage - of_actor.mean()) / (of_actor.std(correction=0) + 1e-8)
        size, metrics = -(-len(goal) // self.ppo.minibatches), dict[str, Tensor]()
        for _ in range(self.ppo.epochs):
            everywhere, where_spoken = _shuffled(torch.arange(len(goal), device=goal.device)), _shuffled(spoken)
            for rows, own in zip_longest(everywhere.split(size), where_spoken.split(size)):
                self.updates += 1
                metrics |= self._descend_critic(seen[rows], goal[rows])
                if own is not None and len(own):
                    metrics |= self._descend_actor(*(x[own] for x in (seen, raw, old, advantage)))
            if self.ppo.far(metrics):
                break
        return {name: value.detach() for name, value in metrics.items()}

    def update(self, b: Transition) -> dict[str, Tensor]:
        """A round on decisions (B, ...) that do not follow each other."""
        return self.learn(Transition(*(x[None] for x in b)), torch.ones_like(b.reward)[None])

    @torch.no_grad()
    def _prepare(self, t: Transition, done: Tensor) -> tuple[Tensor, ...]:
        """Per decision (N = T * B): seen, raw, old log-density, advantage, goal of the value."""
        flat = Transition(*(x.flatten(0, 1) for x in t))
        seen = self.composition.actor_input(flat.obs, flat.base)
        following = self.composition.actor_input(flat.next_obs, flat.next_base)
        value, next_value = self.values(seen).view_as(done), self.values(following).view_as(done)
        gamma = self.cfg.gamma
        found = advantages(
            t.reward * (1 - gamma), value, next_value, t.terminated, done, gamma, self.ppo.gae_lambda
        ).flatten()
        old, _ = self.log_density(seen, flat.raw)
        return seen, flat.raw, old, found, found + value.flatten()

    def _spoken(self, t: Transition) -> Tensor:
        """Which of the N decisions the actor learns from, (M,): those at which it spoke, if anything is told apart."""
        spoke = (t.raw != 0).flatten(2).any(dim=2).flatten()
        return (spoke & tells_apart(t)).nonzero().flatten()

    def _descend_critic(self, seen: Tensor, goal: Tensor) -> dict[str, Tensor]:
        loss = ((self.values(seen) - goal) ** 2).mean()
        self.critic_optimizer.down(loss)
        return {"loss/critic": loss}

    def _descend_actor(self, seen: Tensor, raw: Tensor, old: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        new, entropy = self.log_density(seen, raw)
        moved = new - old
        ratio = moved.exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.ppo.clip, 1 + self.ppo.clip) * advantage)
        loss = -(gain + self.ppo.entropy_weight * entropy).mean()
        self.actor_optimizer.down(loss)
        kl = ((ratio - 1) - moved).detach().mean()  # never negative (Schulman, "Approximating KL divergence")
        clipped = ((ratio - 1).abs() > self.ppo.clip).float().mean()
        return {"loss/actor": loss, "ppo/kl": kl, "ppo/clipped": clipped, "ppo/entropy": entropy.mean()}


def _shuffled(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows), device=rows.device)]
