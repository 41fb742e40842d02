"""How the actor explores: its Gaussian, with noise that may be held for a few decisions.

At control rates of 20 to 100 Hz the white noise of SAC averages out before it moves an arm anywhere; noise that stays
the same for `hold` decisions does not. 1 is SAC, and the paper. Off-policy learning needs no correction for it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Sampler(Protocol):
    """An actor whose samples are decided by noise from outside."""

    def fresh_noise(self, seen: Tensor) -> Tensor: ...
    def __call__(self, seen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass
class Explorer:
    """Proposes raw actions (B, Ta, Da) for what the actor sees."""

    actor: Sampler
    hold: int = 1
    asked: int = 0  # decisions so far
    noise: Tensor = field(default_factory=lambda: torch.zeros(0))  # (B, Ta * Da)

    def __call__(self, seen: Tensor) -> Tensor:
        if self.asked % self.hold == 0:
            self.noise = self.actor.fresh_noise(seen)
        self.asked += 1
        return self.actor(seen, self.noise)[0]


def uniform_like(action: Tensor) -> Callable[[Tensor], Tensor]:
    """Proposes uniform raw actions (B, Ta, Da), of the shape and on the device of `action`: the warm-up's."""
    return lambda seen: torch.rand_like(action) * 2 - 1
