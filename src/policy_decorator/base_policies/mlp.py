"""Behaviour cloning with a multi-layer perceptron, and the input standardisation the policies share.

loss = mean (f(window) - a)^2        (MLP BC of the paper's App. D.1, which gives no settings)
"""

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy_decorator.errors import UserError

if TYPE_CHECKING:
    from policy_decorator.demos.dataset import Demonstrations

STD_FLOOR = 1e-3  # an observation that never moved in the demonstrations must not be divided by zero
CLAMP = 10.0  # in standard deviations: what the demonstrations never showed stays within a sane range


class Standardize(nn.Module):
    """(x - mean) / std per feature, clamped to +-10 standard deviations."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, observations: np.ndarray) -> None:
        """Take mean and standard deviation from frames (N, Do)."""
        frames = np.asarray(observations, dtype=np.float64)  # (N, Do); summed in float32 a constant would seem to move
        self.mean.copy_(torch.from_numpy(frames.mean(axis=0)))
        self.std.copy_(torch.from_numpy(frames.std(axis=0).clip(min=STD_FLOOR)))

    def forward(self, frames: Tensor) -> Tensor:
        """(..., Do) -> (..., Do)."""
        return ((frames - self.mean) / self.std).clamp(-CLAMP, CLAMP)


@dataclass(frozen=True)
class MLPConfig:
    """Behaviour cloning with a multi-layer perceptron."""

    width: int = 256
    """Units in each hidden layer."""
    depth: int = 2
    """Number of hidden layers, each followed by a ReLU."""
    context: int = 1
    """Frames it looks at; they are concatenated."""
    standardize_obs: bool = True
    """Standardise each observation feature with the demonstrations' statistics."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.context) < 1:
            raise UserError(f"width, depth and context of an MLP must be at least 1, got {self}.")


class MLPPolicy(nn.Module):
    """A deterministic policy: the newest action from the last `context` frames."""

    def __init__(self, cfg: MLPConfig, obs_size: int, action_size: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.obs_size = obs_size
        self.action_size = action_size
        self.standardize = Standardize(obs_size) if cfg.standardize_obs else nn.Identity()
        sizes = [cfg.context * obs_size, *[cfg.width] * cfg.depth]
        hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(cfg.width, action_size))

    @property
    def context(self) -> int:
        """To: frames it looks at."""
        return self.cfg.context

    @property
    def chunk(self) -> int:
        """Ta: actions it answers with."""
        return 1

    def fit_statistics(self, demos: "Demonstrations", seed: int = 0) -> None:
        """Set the standardisation from the demonstrations; nothing here is random, `seed` is not used."""
        if isinstance(self.standardize, Standardize):
            self.standardize.fit(demos.observations)

    def loss(self, window: Tensor, actions: Tensor) -> Tensor:
        """Mean squared error on the newest action. (B, To, Do), (B, To, Da) -> ()."""
        return F.mse_loss(self.net(self.standardize(window)), actions[:, -1])

    def means(self, window: Tensor, actions: Tensor | None = None, newest_only: bool = True) -> Tensor:
        """The newest action, not clipped, with gradients. (B, To, Do) -> (B, 1, Da). Nothing else is asked."""
        del actions, newest_only
        return self.net(self.standardize(window)).unsqueeze(1)

    def deterministic(self) -> "MLPPolicy":
        """A copy, which is as deterministic as this: for tuning."""
        return copy.deepcopy(self)

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, 1, Da) in [-1, 1]."""
        return self.means(window).clamp(-1.0, 1.0)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters for the optimiser: weights decay, biases do not."""
        weights = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        return [{"params": weights, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]
