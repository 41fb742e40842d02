"""A residual MLP as the network of a Diffusion Policy (DPPO, arXiv:2409.00588): for low-dimensional states.

condition  what the policy sees, through an MLP of its own where that is wanted
h          linear(sequence, flat | step embedding | condition)
h          h + linear(mish(linear(mish(h))))
noise      linear(h)
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from policy_decorator.base_policies.unet import StepEmbedding


class DenoisingMLP(nn.Module):
    """Noisy sequence, denoising step and condition -> the noise in the sequence.

    Args:
        sequence: (T, size) of what is denoised.
        condition: numbers that the policy sees.
        width: units of the three layers.
        step_size: features of the denoising step.
        seeing: units of the layers between what the policy sees and the first layer, none of them: as it is.
    """

    def __init__(
        self, sequence: tuple[int, int], condition: int, width: int, step_size: int, seeing: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        numbers = sequence[0] * sequence[1]
        self.embed = StepEmbedding(step_size, 2 * step_size)
        layers = [layer for i, o in pairwise((condition, *seeing)) for layer in (nn.Linear(i, o), nn.Mish())]
        self.see = nn.Sequential(*layers[:-1])  # Mish between layers only
        self.first = nn.Linear(numbers + step_size + (seeing[-1] if seeing else condition), width)
        self.block = nn.Sequential(nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, width))
        self.last = nn.Linear(width, numbers)

    def forward(self, noisy: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """(B, T, size), (B,), (B, C) -> (B, T, size)."""
        x = self.first(torch.cat([noisy.flatten(1), self.embed(step), self.see(condition)], dim=-1))
        return self.last(x + self.block(x)).view_as(noisy)
