"""DIPO (arXiv:2305.13122) on a Diffusion Policy (paper App. B.4.2): better actions are found, then imitated.

    L_Q    = (r + gamma min Q'(o', a') - Q(o, a))^2        a' ~ the target policy, as many actions as are executed
    a      <- a + eta dQ/da, some steps, clamped            of a stored sequence only the rows that were executed
    L_pi   = |noise - eps(noisy sequence, k, o)|^2          the Diffusion Policy's own loss, on the improved sequence

Critics judge what is executed, from the newest frame; there is no entropy. What a sequence predicts beyond that stays
as it was drawn. An improved sequence takes the place of the stored one, so that it goes on improving.

Differs from DIPO's code: there what is improved is a copy of the memory's rows, and the memory never changes.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from policy_decorator.errors import UserError
from policy_decorator.rl.bellman import Updating, bootstrapped, regression
from policy_decorator.rl.descent import Descent, follow
from policy_decorator.rl.ensemble import combined, smallest
from policy_decorator.rl.lora import Adapted, LoRAConfig
from policy_decorator.rl.replay import NStep, Replay
from policy_decorator.rl.settings import SACConfig
from policy_decorator.rl.windows import unflattened
from policy_decorator.types import Transition

ADAM_EPS = 1e-5
"""Of the actions' own Adam (DIPO's code)."""


@dataclass(frozen=True)
class DIPOConfig:
    """Defaults are those of DIPO's code."""

    action_lr: float = 0.03
    """Learning rate of actions."""
    action_steps: int = 20
    """Gradient steps that a drawn batch of actions takes."""
    action_grad_norm: float = 0.1
    """Norm, per number of an action, at which the gradient of a whole batch of actions is clipped."""

    def __post_init__(self) -> None:
        if self.action_steps < 1 or min(self.action_lr, self.action_grad_norm) <= 0:
            raise UserError("action_steps must be at least 1, action_lr and action_grad_norm above 0.")


class SequenceActor(Adapted):
    """A Diffusion Policy with corrections in all its layers. It sees flattened windows; `predicted` is its last answer.

    Transposed convolutions, the U-Net's upsampling, have no corrections in PEFT.
    """

    def __init__(self, policy: Any, cfg: LoRAConfig) -> None:
        layers = [name for name, part in policy.named_modules() if isinstance(part, nn.Linear | nn.Conv1d)]
        super().__init__(policy, layers, cfg)
        self.obs_size, self.chunk_shape = int(policy.obs_size), (int(policy.chunk), int(policy.action_size))
        self.sequence_shape = int(policy.horizon), int(policy.action_size)  # (Th, Da)
        self.first = int(policy.context) - 1
        self.predicted = torch.zeros(0)  # (B, Th, Da)

    def forward(self, seen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, To * Do) -> what is executed (B, Ta, Da), and zeros (B,): densities are not known."""
        self.predicted = self.sequence(seen, noise)
        return self.executed(self.predicted), seen.new_zeros(len(seen))

    def mode(self, seen: Tensor) -> Tensor:
        """(B, To * Do) -> (B, Ta, Da), drawn as well."""
        return self.executed(self.sequence(seen))

    @torch.no_grad()
    def sequence(self, seen: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, To * Do) -> (B, Th, Da) in [-1, 1], all that is predicted."""
        noise = self.fresh_noise(seen) if noise is None else noise
        condition = self.policy.condition(unflattened(seen, self.obs_size))
        return self.policy.denoise(noise.unflatten(-1, self.sequence_shape), condition).clamp(-1, 1)

    def fresh_noise(self, seen: Tensor) -> Tensor:
        """What denoising begins with, standard normal, (B, Th * Da)."""
        return torch.randn(len(seen), self.sequence_shape[0] * self.sequence_shape[1], device=seen.device)

    def executed(self, sequence: Tensor) -> Tensor:
        """(B, Th, Da) -> its rows (B, Ta, Da), a view."""
        return sequence[:, self.first : self.first + self.chunk_shape[0]]

    def loss(self, seen: Tensor, sequence: Tensor) -> Tensor:
        """The Diffusion Policy's on (B, To * Do), (B, Th, Da) -> ()."""
        return self.policy.loss(unflattened(seen, self.obs_size), sequence)


class Predictions(NStep):
    """n-step returns whose `base` (B, Th, Da) is all that was predicted: the best sequence known so far."""

    def __init__(self, n: int, gamma: float, actor: SequenceActor) -> None:
        super().__init__(n, gamma)
        self.actor = actor

    def push(self, t: Transition, done: Tensor) -> Transition | None:
        """Take one decision, whose sequence is the last one that was drawn."""
        return super().push(t._replace(base=self.actor.predicted), done)


@dataclass
class DIPO(Updating):
    """Policy and critics, each with a target and an optimiser."""

    actor: SequenceActor
    critic: nn.Module  # (B, To * Do), (B, Ta, Da) -> (n_critics, B)
    cfg: SACConfig = field(default_factory=SACConfig)
    """What is about entropy is not read."""
    dipo: DIPOConfig = field(default_factory=DIPOConfig)
    memory: Replay = field(default_factory=lambda: Replay(0))
    """Whose `base` are the sequences that are improved."""
    updates: int = 0

    def __post_init__(self) -> None:
        self.target: Any = copy.deepcopy(self.critic).requires_grad_(False)
        self.target_actor: Any = copy.deepcopy(self.actor).requires_grad_(False)
        self.critic_opt = Descent(self.critic.parameters(), self.cfg.lr, self.cfg.max_grad_norm)
        self.actor_opt = Descent(self.actor.learned, self.cfg.lr, self.cfg.max_grad_norm)

    def critic_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """L_Q, summed over critics, and Q (n_critics, B)."""
        with torch.no_grad():
            following = self.target(b.next_obs, self.target_actor.mode(b.next_obs))
            value = smallest(following, self.cfg.critic_subset)
            goal = bootstrapped(b, self.cfg.gamma, value)
        q = self.critic(b.obs, b.raw)
        return regression(q, goal), q.detach()

    def value(self, seen: Tensor, action: Tensor) -> Tensor:
        """(B, To * Do), (B, Ta, Da) -> (B,): what actions climb."""
        return combined(self.critic(seen, action), self.cfg.actor_value)

    def improved(self, seen: Tensor, sequence: Tensor) -> Tensor:
        """(B, To * Do), (B, Th, Da) -> the sequences, with better actions where they were executed."""
        action = self.actor.executed(sequence).clone().requires_grad_()
        optimizer = torch.optim.Adam([action], self.dipo.action_lr, eps=ADAM_EPS)
        limit = self.dipo.action_grad_norm * action[0].numel()
        for _ in range(self.dipo.action_steps):
            (action.grad,) = torch.autograd.grad(-self.value(seen, action).sum(), action)
            nn.utils.clip_grad_norm_([action], limit)
            optimizer.step()
            action.data.clamp_(-1, 1)
        better = sequence.clone()
        self.actor.executed(better).copy_(action.detach())
        return better

    def step(self, b: Transition, with_actor: bool) -> dict[str, Tensor]:
        """All of an update that is done with tensors."""
        critic_loss, q = self.critic_loss(b)
        self.critic_opt.down(critic_loss)
        metrics = {"loss/critic": critic_loss, "q/mean": q.mean()}
        if with_actor and self.memory.data is not None:
            metrics |= self._imitate(self.memory.data)
            follow(self.target_actor, self.actor, self.cfg.tau)
        follow(self.target, self.critic, self.cfg.tau)
        return {name: value.detach() for name, value in metrics.items()}

    def _imitate(self, known: Transition) -> dict[str, Tensor]:
        """Improve a batch of the memory, in its place, and take a step towards it."""
        rows = torch.randint(self.memory.size, (self.cfg.batch_size,), device=known.reward.device)
        seen, before = known.obs[rows], known.base[rows]
        better = self.improved(seen, before)
        known.base[rows] = better
        loss = self.actor.loss(seen, better)
        self.actor_opt.down(loss)
        with torch.no_grad():
            gain = self.value(seen, self.actor.executed(better)) - self.value(seen, self.actor.executed(before))
        return {"loss/actor": loss, "dipo/gain": gain.mean()}
