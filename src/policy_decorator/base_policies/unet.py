"""A 1-D U-Net over time whose layers are modulated by a condition (FiLM, arXiv 1709.07871).

    block(x, c)   h = mish(norm(conv(x)));  h = scale(c) * h + bias(c);  h = mish(norm(conv(h)));  h + skip(x)
    down          two blocks a level, then half the rows (but the last level)
    mid           two blocks
    up            the outputs of the level below and of the way down, two blocks, twice the rows
    condition     step embedding | what the policy sees

from Chi et al. 2023 (arXiv 2303.04137), in the form of the code that the paper released.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

GROUPS = 8
"""Of every group normalisation: widths are multiples of it."""
LONGEST_PERIOD = 10_000.0


class StepEmbedding(nn.Module):
    """Denoising step -> features: sines and cosines of geometrically spaced frequencies, then two layers."""

    def __init__(self, size: int, hidden: int | None = None) -> None:
        super().__init__()
        self.size, hidden = size, hidden or 4 * size
        self.net = nn.Sequential(nn.Linear(size, hidden), nn.Mish(), nn.Linear(hidden, size))

    def waves(self, step: Tensor) -> Tensor:
        """(B,) -> (B, size): frequencies from 1 down to 1 / `LONGEST_PERIOD`."""
        half = self.size // 2
        exponent = torch.arange(half, device=step.device) / (half - 1)
        angle = step[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * exponent)  # (B, size / 2)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def forward(self, step: Tensor) -> Tensor:
        """(B,) integers -> (B, size)."""
        return self.net(self.waves(step))


def convolved(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    """(B, in, T) -> (B, out, T): convolution, normalisation, Mish."""
    conv = nn.Conv1d(channels_in, channels_out, kernel, padding=kernel // 2)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, channels_out), nn.Mish())


class Block(nn.Module):
    """Two convolutions, the first one's output scaled and shifted by the condition, around a skip connection."""

    def __init__(self, channels_in: int, channels_out: int, condition: int, kernel: int) -> None:
        super().__init__()
        self.first = convolved(channels_in, channels_out, kernel)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * channels_out))
        self.second = convolved(channels_out, channels_out, kernel)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, in, T), (B, C) -> (B, out, T)."""
        scale, bias = self.film(condition).unsqueeze(-1).chunk(2, dim=1)  # (B, out, 1) each
        return self.second(scale * self.first(x) + bias) + self.skip(x)


class Pair(nn.Module):
    """Two blocks."""

    def __init__(self, channels_in: int, channels_out: int, condition: int, kernel: int) -> None:
        super().__init__()
        self.first = Block(channels_in, channels_out, condition, kernel)
        self.second = Block(channels_out, channels_out, condition, kernel)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, in, T), (B, C) -> (B, out, T)."""
        return self.second(self.first(x, condition), condition)


class UNet1D(nn.Module):
    """Noisy sequence, denoising step and condition -> the noise in the sequence.

    T must be a multiple of 2 ** (levels - 1).
    """

    def __init__(self, size: int, condition: int, widths: tuple[int, ...], step_size: int, kernel: int = 5) -> None:
        super().__init__()
        seen = step_size + condition
        levels = list(pairwise((size, *widths)))  # (in, out) of each
        self.embed = StepEmbedding(step_size)
        self.down = nn.ModuleList(Pair(i, o, seen, kernel) for i, o in levels)
        self.downsample = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = Pair(widths[-1], widths[-1], seen, kernel)
        self.up = nn.ModuleList(Pair(2 * o, i, seen, kernel) for i, o in reversed(levels[1:]))
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(w, w, 4, stride=2, padding=1) for w in reversed(widths[:-1]))
        self.final = nn.Sequential(convolved(widths[0], widths[0], kernel), nn.Conv1d(widths[0], size, 1))

    def forward(self, noisy: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """(B, T, size), (B,), (B, C) -> (B, T, size)."""
        seen = torch.cat([self.embed(step), condition], dim=-1)
        x, passed = noisy.transpose(1, 2), []  # (B, size, T)
        for i, level in enumerate(self.down):
            x = level(x, seen)
            passed.append(x)
            x = self.downsample[i](x) if i < len(self.downsample) else x
        x = self.middle(x, seen)
        for level, upsample in zip(
            self.up, self.upsample, strict=True
        ):  # the outermost level's output is not passed on
            x = upsample(level(torch.cat([x, passed.pop()], dim=1), seen))
        return self.final(x).transpose(1, 2)

    def modulation(self, step: Tensor, condition: Tensor) -> Tensor:
        """Scales and shifts of the first block, (B,), (B, C) -> (B, 2 * width)."""
        first: Any = self.down[0]
        return first.first.film(torch.cat([self.embed(step), condition], dim=-1))
