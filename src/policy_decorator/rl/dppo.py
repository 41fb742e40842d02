"""Diffusion Policy Policy Optimization (arXiv:2409.00588): PPO on the denoising steps of a Diffusion Policy.

    loss_k = -min(rho_k A_k, clip(rho_k, 1 - c_k, 1 + c_k) A_k)     of every decision and tuned step k = 0 ... K' - 1
    rho_k  = exp(log p_k - log p_k,old)                             p_k: the Gaussian of `rl.denoising`
    A_k    = gamma_denoise^(K' - 1 - k) A                           k = 0 is the noisiest, the last makes the action
    loss_V = (V(o) - A - V_old)^2

A is the generalised advantage of the decision, with rewards divided by the deviation of the running return, normalised
in each minibatch of (decision, k) pairs. The value sees the newest frame only.

Differs from DPPO's code: episodes go on from one round to the next, and one that runs out of time bootstraps from its
own last observation, where DPPO takes the first one of the episode that follows. In a round without any reward, which
its rounds of hundreds of episodes hardly are, the policy rests: normalised advantages would be the value's noise.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from policy_decorator.errors import UserError
from policy_decorator.rl.denoising import Denoising, DenoisingConfig, clip_ranges
from policy_decorator.rl.descent import Descent
from policy_decorator.rl.ppo import PPOConfig, Rollouts, advantages, tells_apart
from policy_decorator.rl.rewards import RewardScale
from policy_decorator.rl.sac import SACConfig
from policy_decorator.types import Transition


@dataclass(frozen=True)
class DPPOConfig(DenoisingConfig):
    """Defaults are DPPO's for robomimic with states."""

    gamma_denoise: float = 0.99
    """Discount of the advantage per denoising step before the last one."""
    clip_smallest: float = 0.001
    """Clip range of the noisiest tuned step; it grows exponentially to PPO's `clip` of the last one."""
    clip_growth: float = 3.0
    """Exponent of that growth."""
    critic_lr: float = 1e-3
    """Learning rate of the value."""
    critic_rounds: int = 2
    """Rounds of updates, from the first one on, in which only the value learns."""
    scale_gamma: float = 0.99
    """Discount of the return whose deviation scales the rewards."""
    reward_limit: float = 10.0
    """Size at which scaled rewards are clipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.gamma_denoise <= 1 and 0 <= self.scale_gamma <= 1):
            raise UserError("gamma_denoise must be in (0, 1], and scale_gamma in [0, 1].")
        if min(self.clip_smallest, self.clip_growth, self.critic_lr, self.reward_limit) <= 0 or self.critic_rounds < 0:
            raise UserError(
                "clip_smallest, clip_growth, critic_lr and reward_limit must be above 0, critic_rounds at least 0."
            )


class Chains(Rollouts):
    """Rollouts that keep, as `raw`, the chains (T, B, K' + 1, Th, Da) by which the actions were found."""

    def __init__(self, length: int, denoising: Denoising) -> None:
        super().__init__(length)
        self.denoising = denoising

    def push(self, t: Transition, done: Tensor) -> None:
        """Take one decision, whose chain is the last one that was drawn."""
        super().push(t._replace(raw=self.denoising.chain), done)


@dataclass
class DPPO:
    """Policy and value function, with an optimiser each."""

    denoising: Denoising
    critic: nn.Module  # newest frame (N, Do), nothing (N, 0) -> (1, N)
    cfg: SACConfig = field(default_factory=SACConfig)
    """Read for gamma, the policy's learning rate and the gradient norm at which each of both is clipped."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    dppo: DPPOConfig = field(default_factory=DPPOConfig)
    updates: int = 0

    def __post_init__(self) -> None:
        self.actor = cast(nn.Module, self.denoising.policy)
        tuned = [p for p in self.actor.parameters() if p.requires_grad]
        self.actor_optimizer = Descent(tuned, self.cfg.lr, self.cfg.max_grad_norm)
        self.critic_optimizer = Descent(self.critic.parameters(), self.dppo.critic_lr, self.cfg.max_grad_norm)
        self.scale = RewardScale(self.dppo.scale_gamma, self.dppo.reward_limit)
        self.rounds = torch.zeros((), dtype=torch.int64)
        device, steps = tuned[0].device, self.denoising.tuned
        ranges = clip_ranges(steps, self.dppo.clip_smallest, self.ppo.clip, self.dppo.clip_growth)
        later = torch.arange(steps - 1, -1, -1)  # tuned steps behind each
        self._clip, self._discount = ranges.to(device), (self.dppo.gamma_denoise**later).to(device)

    def values(self, obs: Tensor) -> Tensor:
        """(N, Do) -> (N,), in units of the scaled reward."""
        return self.critic(obs, obs[:, :0])[0]

    def learn(self, t: Transition, done: Tensor) -> dict[str, Tensor]:
        """A round of updates on decisions (T, B, ...) of the policy as it is; their `raw` are chains."""
        flat = Transition(*(x.flatten(0, 1) for x in t))
        advantage, goal = self._advantages(flat, t, done)
        steps = self.denoising.pairs(flat.raw)  # N * K' of them: from, to, which
        size = -(-len(steps[0]) // self.ppo.minibatches)
        tuned, metrics, newest = self.denoising.tuned, dict[str, Tensor](), self._newest(flat.obs)
        policy_learns = self.rounds >= self.dppo.critic_rounds and bool(tells_apart(t))
        with torch.no_grad():
            parts = torch.arange(len(steps[0]), device=done.device).split(size)
            old = torch.cat([self._density(flat.obs, steps, rows) for rows in parts])
        for _ in range(self.ppo.epochs):
            for rows in torch.randperm(len(old), device=done.device).split(size):
                self.updates += 1
                one = rows // tuned  # the decisions that these steps belong to
                if policy_learns:
                    moved = self._density(flat.obs, steps, rows) - old[rows]
                    metrics |= self._descend_actor(moved, advantage[one], steps[2][rows])
                metrics |= self._descend_critic(newest[one], goal[one])
                if self.ppo.far(metrics):
                    break
            if self.ppo.far(metrics):
                break
        self.rounds += 1
        return {name: value.detach() for name, value in metrics.items()}

    def update(self, b: Transition) -> dict[str, Tensor]:
        """A round on decisions (B, ...) that do not follow each other."""
        return self.learn(Transition(*(x[None] for x in b)), torch.ones_like(b.reward)[None])

    def _newest(self, seen: Tensor) -> Tensor:
        """(N, To * Do) -> (N, Do)."""
        return seen[:, -self.denoising.obs_size :]

    def _density(self, seen: Tensor, steps: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> Tensor:
        """Of the denoising steps in `rows` (M,). Returns (M,)."""
        return self.denoising.log_density(seen[rows // self.denoising.tuned], *(x[rows] for x in steps))

    @torch.no_grad()
    def _advantages(self, flat: Transition, t: Transition, done: Tensor) -> tuple[Tensor, Tensor]:
        """Of every decision, and the goal of its value: (N,) each."""
        value = self.values(self._newest(flat.obs)).view_as(done)
        ahead = self.values(self._newest(flat.next_obs)).view_as(done)
        reward, lam = self.scale(t.reward, done), self.ppo.gae_lambda
        found = advantages(reward, value, ahead, t.terminated, done, self.cfg.gamma, lam)
        return found.flatten(), (found + value).flatten()

    def _descend_actor(self, moved: Tensor, advantage: Tensor, which: Tensor) -> dict[str, Tensor]:
        """One step on M denoising steps, whose log-densities have `moved` (M,) since they were taken."""
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8) * self._discount[which]
        ratio, clip = moved.exp(), self._clip[which]
        loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
        self.actor_optimizer.down(loss)
        ratio, moved = ratio.detach(), moved.detach()
        clipped = ((ratio - 1).abs() > clip).float().mean()
        return {"loss/actor": loss, "ppo/kl": (ratio - 1 - moved).mean(), "ppo/clipped": clipped}

    def _descend_critic(self, obs: Tensor, goal: Tensor) -> dict[str, Tensor]:
        loss = ((self.values(obs) - goal) ** 2).mean()
        self.critic_optimizer.down(loss)
        return {"loss/critic": loss}
