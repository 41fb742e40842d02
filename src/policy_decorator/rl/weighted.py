"""What IQL, AWAC and DAPG learn their policy with: the log-likelihood of given actions, each with its own weight."""

import math
from typing import Any

import torch
from torch import Tensor

from policy_decorator.rl.nets import TanhGaussian, log_normal


class BoundedGaussian(TanhGaussian):
    """A Gaussian around tanh(mean): unlike tanh of a Gaussian it has a finite density of actions at the bounds.

    Its mode is that of a `TanhGaussian` with the same parameters. `clamps`: whether samples are clamped to [-1, 1];
    their log-probability is that of the sample before.
    """

    def __init__(self, *args: Any, clamps: bool = True) -> None:
        super().__init__(*args)
        self.clamps = clamps

    def forward(self, seen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, log_std = self.gaussian(seen)
        noise = self.fresh_noise(seen) if noise is None else noise
        raw = (mean.tanh() + log_std.exp() * noise).unflatten(-1, self.chunk_shape)
        return raw.clamp(-1, 1) if self.clamps else raw, log_normal(noise, log_std).sum(-1)

    def log_density(self, seen: Tensor, raw: Tensor) -> Tensor:
        """(B, *), (B, Ta, Da) -> (B,)."""
        mean, log_std = self.gaussian(seen)
        return log_normal((raw.flatten(1) - mean.tanh()) / log_std.exp(), log_std).sum(-1)


def weights(advantage: Tensor, sharpness: float, most: float) -> Tensor:
    """min(exp(sharpness * advantage), most), (B,), without a gradient."""
    return (sharpness * advantage.detach()).clamp(max=math.log(most)).exp()


def weighted_likelihood(actor: BoundedGaussian, seen: Tensor, raw: Tensor, weight: Tensor) -> Tensor:
    """Minus the mean of weight * log pi(raw | seen)."""
    return -(weight * actor.log_density(seen, raw)).mean()


def entropy(actor: TanhGaussian, seen: Tensor) -> Tensor:
    """Mean entropy of the Gaussian, of one number."""
    with torch.no_grad():
        log_std = actor.gaussian(seen)[1]
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1).mean()
