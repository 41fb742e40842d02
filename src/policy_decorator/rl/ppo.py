"""Proximal Policy Optimization (arXiv:1707.06347) as the learner of a residual (paper App. D.3).

    A_t = sum_k (gamma lambda)^k delta_{t+k},   delta_t = r_t + gamma V(o_{t+1}) - V(o_t)          (arXiv:1506.02438)
    loss = -min(rho A, clip(rho, 1 - c, 1 + c) A) + w_V (V - A - V_old)^2 - w_H H,   rho = pi(a | o) / pi_old(a | o)

The policy is the behaviour as it is collected: where the gate lets the base act alone, what follows tells the value
function about that state and says nothing about the residual.
"""

from dataclasses import dataclass, field

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
    value_weight: float = 0.5
    """w_V."""
    entropy_weight: float = 0.0
    """w_H, on the entropy before tanh."""
    target_kl: float | None = 0.1
    """No further pass once the policy has moved this far from the one that collected; None: all of them."""

    def __post_init__(self) -> None:
        if min(self.rollout, self.epochs, self.minibatches) < 1:
            raise UserError("rollout, epochs and minibatches of PPO must be at least 1.")


def advantages(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimates; all (T, B), `done` where an episode ended, for whatever reason."""
    delta = reward + gamma * (1 - terminated) * next_value - value
    out, running = torch.empty_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        out[t] = running = delta[t] + gamma * lam * (1 - done[t]) * running
    return out


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
    """Actor and value function, which sees what the actor sees. One optimiser for both."""

    actor: TanhGaussian
    critic: nn.Module  # what the actor sees (N, *), nothing (N, 0) -> (1, N)
    composition: Composition
    cfg: SACConfig = field(default_factory=SACConfig)
    """Read for gamma, the learning rate and the gradient norm at which both are clipped together."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    updates: int = 0

    def __post_init__(self) -> None:
        both = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = Descent(both, self.cfg.lr, self.cfg.max_grad_norm)

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
        data = self._prepare(t, done)
        metrics: dict[str, Tensor] = {}
        for _ in range(self.ppo.epochs):
            for rows in torch.randperm(len(data[0]), device=done.device).chunk(self.ppo.minibatches):
                metrics = self._descend(*(x[rows] for x in data))
            if self.ppo.target_kl is not None and metrics["ppo/kl"] > self.ppo.target_kl:
                break
        return {name: value.detach() for name, value in metrics.items()}

    def update(self, b: Transition) -> dict[str, Tensor]:
        """A round on decisions (B, ...) that do not follow each other."""
        return self.learn(Transition(*(x[None] for x in b)), torch.ones_like(b.reward)[None])

    @torch.no_grad()
    def _prepare(self, t: Transition, done: Tensor) -> tuple[Tensor, ...]:
        """Per decision (N = T * B): seen, raw, old log-density, advantage, goal of the value, if the actor spoke."""
        flat = Transition(*(x.flatten(0, 1) for x in t))
        seen = self.composition.actor_input(flat.obs, flat.base)
        following = self.composition.actor_input(flat.next_obs, flat.next_base)
        value, next_value = self.values(seen).view_as(done), self.values(following).view_as(done)
        gamma = self.cfg.gamma
        found = advantages(
            t.reward * (1 - gamma), value, next_value, t.terminated, done, gamma, self.ppo.gae_lambda
        ).flatten()
        spoke = (flat.raw != 0).flatten(1).any(dim=1).float()
        old, _ = self.log_density(seen, flat.raw)
        return seen, flat.raw, old, found, found + value.flatten(), spoke

    def _descend(
        self, seen: Tensor, raw: Tensor, old: Tensor, advantage: Tensor, goal: Tensor, spoke: Tensor
    ) -> dict[str, Tensor]:
        self.updates += 1
        n = spoke.sum().clamp(min=1.0)
        mean = (advantage * spoke).sum() / n
        spread = (((advantage - mean) ** 2 * spoke).sum() / n).sqrt()
        advantage = (advantage - mean) / (spread + 1e-8)
        new, entropy = self.log_density(seen, raw)
        moved = new - old
        ratio = moved.exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.ppo.clip, 1 + self.ppo.clip) * advantage)
        actor_loss = -((gain + self.ppo.entropy_weight * entropy) * spoke).sum() / n
        value_loss = ((self.values(seen) - goal) ** 2).mean()
        self.optimizer.down(actor_loss + self.ppo.value_weight * value_loss)
        kl = (((ratio - 1) - moved) * spoke).sum() / n  # never negative (Schulman, "Approximating KL divergence")
        clipped = (((ratio - 1).abs() > self.ppo.clip).float() * spoke).sum() / n
        facts = {"loss/actor": actor_loss, "loss/critic": value_loss, "ppo/kl": kl.detach(), "ppo/clipped": clipped}
        return facts | {"ppo/entropy": (entropy * spoke).sum() / n}
