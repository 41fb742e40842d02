"""What networks make of pictures: a small CNN, and random shifts that it is trained on.

    frame (*, {state, rgb uint8, depth int16 mm}) -> [state, features] (*, Do + F)

The CNN is `PlainConv` of the released code, after ManiSkill's baselines; shifts are DrQ-v2's (arXiv:2107.09645).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from policy_decorator.errors import UserError

Shapes = Mapping[str, tuple[int, int, int]]
"""(C, H, W) of every kind of picture, by its name: rgb, depth."""


@dataclass(frozen=True)
class EncoderConfig:
    """The CNN of the released code for pictures of 64 x 64."""

    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Of the 3 x 3 convolutions, each with a ReLU and a 2 x 2 maximum (released code: 16 16 32 64 for PushChair)."""
    last_channels: int = 128
    """Of the last convolution, with a ReLU alone."""
    last_kernel: int = 1
    """Its size (released code: 3 for PushChair)."""
    features: int = 256
    """What it says of a frame's pictures."""
    shift: int = 2
    """Pixels by which pictures are shifted at random in training (released code: 2, and 0 for PushChair)."""

    def __post_init__(self) -> None:
        if min(*self.channels, self.last_channels, self.features) < 1 or self.shift < 0:
            raise UserError(f"An encoder has at least one channel, one feature and a shift from 0 on, got {self}.")
        if self.last_kernel % 2 == 0:
            raise UserError(f"last_kernel must be odd, got {self.last_kernel}.")


class Encoder(nn.Module):
    """A state and pictures of one frame as one vector."""

    def __init__(self, cfg: EncoderConfig, shapes: Shapes, state_size: int) -> None:
        """Raises UserError: no rgb, kinds that differ in size, pictures too small for so many halvings."""
        super().__init__()
        self.cfg, self.shapes, self.state_size = cfg, dict(shapes), state_size
        sizes = {shape[1:] for shape in self.shapes.values()}
        if "rgb" not in shapes or len(sizes) != 1:
            raise UserError(f"An encoder needs rgb, and all pictures in one size, got {dict(shapes)}.")
        ((height, width),) = sizes
        halvings = 2 ** len(cfg.channels)
        if min(height, width) < halvings:
            raise UserError(
                f"Pictures of {height} x {width} cannot be halved {len(cfg.channels)} times: fewer channels."
            )
        planes = (sum(shape[0] for shape in self.shapes.values()), *cfg.channels)
        blocks = [m for a, b in pairwise(planes) for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]
        last = nn.Conv2d(planes[-1], cfg.last_channels, cfg.last_kernel, padding=cfg.last_kernel // 2)
        self.convolutions = nn.Sequential(*blocks, last, nn.ReLU(), nn.Flatten())
        area = (height // halvings) * (width // halvings)
        self.project = nn.Sequential(nn.Linear(cfg.last_channels * area, cfg.features), nn.ReLU())
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def size(self) -> int:
        """Do + F."""
        return self.state_size + self.cfg.features

    def forward(self, frames: Any, *, shifted: bool = False) -> Tensor:
        """(*, Do + F) of frames (*), a mapping or TensorDict; `shifted`: every row's pictures by its own distance."""
        state = frames["state"]
        batch = state.shape[:-1]
        pictures = {name: frames[name].flatten(0, len(batch) - 1) for name in self.shapes}  # (B, C, H, W)
        if shifted and self.cfg.shift:
            offsets = random_offsets(len(pictures["rgb"]), self.cfg.shift, state.device)
            pictures = {name: shift(x, offsets) for name, x in pictures.items()}  # a frame's kinds stay together
        image = torch.cat([scaled(name, x) for name, x in pictures.items()], dim=1)
        features = self.project(self.convolutions(image))
        return torch.cat([state, features.unflatten(0, batch)], dim=-1)


def scaled(name: str, pictures: Tensor) -> Tensor:
    """uint8 colours in [0, 1], int16 depth in metres; float32."""
    # Differs from the released code: its depth comes in 1/1024 m. What the CNN sees is metres there, too.
    return pictures.float() / (1000 if name == "depth" else 255)


def random_offsets(n: int, pad: int, device: torch.device) -> Tensor:
    """(n, 2) whole pixels from -pad to pad, down and to the right."""
    return torch.randint(-pad, pad + 1, (n, 2), device=device)


def shift(pictures: Tensor, offsets: Tensor) -> Tensor:
    """(B, C, H, W) of any number format, moved by (B, 2) pixels; edges are repeated. One gather."""
    height, width = pictures.shape[-2:]
    down, right = offsets[:, :1], offsets[:, 1:]
    row = (torch.arange(height, device=offsets.device) - down).clamp(0, height - 1)  # (B, H)
    column = (torch.arange(width, device=offsets.device) - right).clamp(0, width - 1)  # (B, W)
    place = (row[:, :, None] * width + column[:, None, :]).flatten(1)  # (B, H W)
    flat = pictures.flatten(2)  # (B, C, H W)
    return flat.gather(2, place[:, None].expand_as(flat)).view_as(pictures)
