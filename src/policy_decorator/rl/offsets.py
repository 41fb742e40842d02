"""SAC on a Behavior Transformer (paper App. B.4.1): of a decision only the offset is learned by gradients.

    a = (c_k + tanh(u)) / S,   u ~ N(offset_k(o), std(o)^2),   k as the Behavior Transformer chooses it

log pi is the density of tanh(u) given k; neither the choice of k nor the constant S counts in it. a is clipped to
[-1, 1], as the environments would: critics know no data beyond, and would be driven further and further out there.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from policy_decorator.rl.lora import Adapted, LoRAConfig
from policy_decorator.rl.nets import NetConfig, squashed_density
from policy_decorator.rl.sac import SAC
from policy_decorator.rl.windows import unflattened
from policy_decorator.types import Transition


class OffsetActor(Adapted):
    """A Behavior Transformer with corrections, whose bounded offsets are noisy. It sees flattened windows.

    The deviation is a linear function of the transformer's features, `std` everywhere at first. Dropout is as the
    policy's own. Without settings of LoRA all of the transformer learns.
    """

    def __init__(self, policy: Any, cfg: LoRAConfig | None, nets: NetConfig, std: float) -> None:
        super().__init__(policy, policy.lora_layers, cfg)
        self.obs_size, self.action_size = int(policy.obs_size), int(policy.action_size)
        self.chunk_shape = 1, self.action_size
        nets = replace(nets, initial_std=std)  # raises UserError where its limits do not allow it
        self.low, self.high = nets.log_std_min, nets.log_std_max
        self.spread = nn.Linear(policy.cfg.gpt_output, self.action_size)
        nn.init.zeros_(self.spread.weight)
        nn.init.constant_(self.spread.bias, math.atanh(2 * (math.log(std) - self.low) / (self.high - self.low) - 1))

    def forward(self, seen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, To * Do) -> a sample (B, 1, Da) in [-1, 1], and its log-density (B,) before clipping.

        Noise (B, Da) is fresh unless given; of (N, B, Da) there are N samples (N, B, 1, Da), and one dropout for all.
        """
        features = self.policy.features(unflattened(seen, self.obs_size), dropout=True)  # (B, G)
        centre, offset = self.policy.choice(features)
        log_std = self.low + 0.5 * (self.high - self.low) * (torch.tanh(self.spread(features)) + 1)
        noise = self.fresh_noise(seen) if noise is None else noise
        u = offset + log_std.exp() * noise
        return self.policy.action(centre, u).clamp(-1, 1).unsqueeze(-2), squashed_density(u, noise, log_std)

    @property
    def log_volume(self) -> Tensor | float:
        """What turns log-densities of offsets into those of actions: sum log S."""
        scale = self.policy.scale
        return 0.0 if scale is None else scale.log().sum()

    def fresh_noise(self, seen: Tensor) -> Tensor:
        """Standard normal, (B, Da)."""
        return torch.randn(len(seen), self.action_size, device=seen.device)

    def mode(self, seen: Tensor) -> Tensor:
        """(B, To * Do) -> the policy's own action (B, 1, Da), not clipped."""
        return self.policy.means(unflattened(seen, self.obs_size), newest_only=True)


@dataclass
class OffsetSAC(SAC):
    """SAC of an `OffsetActor`, which may wait until the critics have learned (App. F.5.2)."""

    actor: OffsetActor  # pyright: ignore[reportIncompatibleVariableOverride]
    critic_first: int = field(default=0, kw_only=True)
    """Updates, from the first one on, in which the actor rests."""
    entropy: Literal["learned", "waits", "fixed"] = field(default="learned", kw_only=True)
    """The temperature: learned all the time, not before the actor learns, or never."""

    resting: bool = field(default=False, init=False)
    """Whether the actor rests in the update at hand. A compiler makes other graphs when it changes."""

    def begun(self) -> bool:
        """As SAC's."""
        with_actor = super().begun()
        self.resting = self.updates <= self.critic_first
        return with_actor

    def temperature_loss(self, log_prob: Tensor) -> Tensor:
        """As SAC's; a fixed temperature has no gradient."""
        return super().temperature_loss(log_prob) * (self.entropy != "fixed")

    def step(self, b: Transition, with_actor: bool) -> dict[str, Tensor]:
        """As SAC's."""
        metrics = super().step(b, with_actor and not self.resting)
        if with_actor and self.resting:
            with torch.no_grad():
                log_prob = self.actor(self.composition.actor_input(b.obs, b.base))[1]
            if self.entropy == "learned":
                self.temperature_opt.down(self.temperature_loss(log_prob))
            metrics["sac/entropy"] = -log_prob.mean()
        return metrics
