"""Small networks: the squashed Gaussian actor and the critics (paper App. B.3, released code)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from policy_decorator.errors import UserError
from policy_decorator.rl.stacked import StackedMLP


@dataclass(frozen=True)
class NetConfig:
    """Defaults are the released code's."""

    width: int = 256
    """Units per hidden layer."""
    depth: int = 3
    """Hidden layers."""
    critics: int = 2
    """Q functions; the smallest is believed."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Number format of the layers between the first and the last (not in the paper); auto: bfloat16 where a run's
    machine is faster with it."""
    critic_layer_norm: bool = False
    """LayerNorm, without scale and shift, in every hidden layer of the critics (not in the paper; RLPD, DAWN)."""
    head_gain: float = 0.01
    """Orthogonal gain of the last layers: an untrained residual is all but zero."""
    log_std_min: float = -20.0
    """Smallest log standard deviation of the actor; tanh interpolates up to `log_std_max`."""
    log_std_max: float = 2.0
    """Largest log standard deviation of the actor."""
    zero_init: bool = False
    """The actor's last layer begins at zero: an untrained residual is zero (not in the paper; arXiv:2509.19301)."""
    initial_std: float | None = None
    """Standard deviation of an untrained actor (before tanh, where it squashes its noise): exactly with `zero_init`,
    else about. None: what the method says; where it says nothing, the middle of its range on the log scale,
    exp((log_std_min + log_std_max) / 2)."""

    def __post_init__(self) -> None:
        low, high = math.exp(self.log_std_min), math.exp(self.log_std_max)
        if self.initial_std is not None and not low < self.initial_std < high:
            raise UserError(
                f"initial_std must be between exp(log_std_min) and exp(log_std_max), {low:.3g} and {high:.3g}."
            )

    @property
    def hidden_dtype(self) -> torch.dtype | None:
        """None leaves the format of the inputs. Raises UserError for "auto", which `hardware.resolved` replaces."""
        if self.precision == "auto":
            raise UserError("precision auto is for runs: a network by itself needs float32 or bfloat16.")
        return torch.bfloat16 if self.precision == "bfloat16" else None


class Standardize(nn.Module):
    """(x - mean) / std with fixed statistics, clamped; the identity until statistics are set."""

    mean: Tensor
    std: Tensor
    limit: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("limit", torch.full((size,), math.inf))

    def set(self, mean: Tensor, std: Tensor, *, smallest_std: float = 1e-3, limit: float = 10.0) -> None:
        """Statistics (n,) of the first n entries; what follows (a base action) passes unchanged."""
        n = len(mean)
        self.mean[:n], self.std[:n], self.limit[:n] = mean, std + smallest_std, limit

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp((x - self.mean) / self.std, -self.limit, self.limit)


class TanhGaussian(nn.Module):
    """State-dependent Gaussian squashed to (-1, 1), and then multiplied by `scale`.

    Densities are those before the multiplication: what entropy is asked for does not depend on the scale.
    """

    scale: Tensor
    """In [0, 1]; not learned."""

    def __init__(self, input_size: int, chunk: tuple[int, int], cfg: NetConfig | None = None) -> None:
        super().__init__()
        self.cfg = cfg = cfg or NetConfig()
        self.chunk_shape = chunk  # (Ta, Da)
        self.standardize = Standardize(input_size)
        self.register_buffer("scale", torch.ones(()))
        sizes = (input_size, *(cfg.width,) * cfg.depth, 2 * math.prod(chunk))
        self.net = StackedMLP(1, sizes, cfg.head_gain, hidden_dtype=cfg.hidden_dtype)
        self._begin_at()

    @torch.no_grad()
    def _begin_at(self) -> None:
        """The last layer as `zero_init` and `initial_std` want it."""
        if self.cfg.zero_init:
            self.net.head.weight.zero_()
        if self.cfg.initial_std is not None:
            low, high = self.cfg.log_std_min, self.cfg.log_std_max
            place = 2 * (math.log(self.cfg.initial_std) - low) / (high - low) - 1  # in (-1, 1), as tanh answers
            self.net.head.bias[..., math.prod(self.chunk_shape) :] = math.atanh(place)

    def gaussian(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(B, *) -> mean and log standard deviation (B, Ta * Da) of the action before tanh."""
        mean, x = self.net(self.standardize(seen))[0].chunk(2, dim=-1)  # (B, Ta * Da) each
        low, high = self.cfg.log_std_min, self.cfg.log_std_max
        return mean, low + 0.5 * (high - low) * (torch.tanh(x) + 1)

    def forward(self, seen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, *) -> a sample (B, Ta, Da) and its log-probability (B,).

        `noise` (B, Ta * Da) is fresh unless given; of (N, B, Ta * Da) there are N samples (N, B, Ta, Da).
        """
        mean, log_std = self.gaussian(seen)
        noise = self.fresh_noise(seen) if noise is None else noise
        u = mean + log_std.exp() * noise
        return self.scale * u.tanh().unflatten(-1, self.chunk_shape), squashed_density(u, noise, log_std)

    def fresh_noise(self, seen: Tensor) -> Tensor:
        """Standard normal, (B, Ta * Da)."""
        return torch.randn(len(seen), math.prod(self.chunk_shape), device=seen.device)

    def mode(self, seen: Tensor) -> Tensor:
        """(B, *) -> the most likely raw action (B, Ta, Da)."""
        return self.scale * self.gaussian(seen)[0].tanh().unflatten(-1, self.chunk_shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.setdefault(f"{prefix}scale", torch.ones(()))  # files from before there was one
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def log_normal(noise: Tensor, log_std: Tensor) -> Tensor:
    """log-density, elementwise, of what lies `noise` standard deviations from a Gaussian's mean."""
    return -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)


def squashed_density(u: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
    """log-density (B,) of tanh(u), where u (B, n) lies `noise` standard deviations from a Gaussian's mean."""
    squash = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))  # log(1 - tanh(u)^2), without overflow
    return (log_normal(noise, log_std) - squash).sum(-1)


class Critics(nn.Module):
    """n independent Q functions evaluated as one: (B, Do), (B, Ta, *) -> (n, B)."""

    def __init__(self, obs_size: int, action_size: int, cfg: NetConfig | None = None) -> None:
        super().__init__()
        self.cfg = cfg = cfg or NetConfig()
        self.standardize = Standardize(obs_size)
        sizes = (obs_size + action_size, *(cfg.width,) * cfg.depth, 1)
        self.net = StackedMLP(
            cfg.critics, sizes, cfg.head_gain, layer_norm=cfg.critic_layer_norm, hidden_dtype=cfg.hidden_dtype
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([self.standardize(obs), action.flatten(1)], dim=-1)).squeeze(-1)
