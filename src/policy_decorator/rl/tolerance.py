"""How large a correction the base policy bears: the noise in its actions that costs it half of its success.

Not in the paper, whose alpha is chosen by hand for every task (Table 8). Exploration begins as noise of that size:
where the base keeps half of its success, there is something to learn from, and room to learn in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from policy_decorator.errors import UserError
from policy_decorator.memory import Around, ask

SMALLEST, LARGEST = 0.005, 1.0
"""Amplitudes that are tried, of actions in [-1, 1]."""
BATCHES, EPISODES = 5, 16
"""How often episodes are played at one amplitude, the first time without noise, and how many."""


@dataclass(frozen=True)
class Disturbed(Around):
    """A base policy in whose actions there is uniform noise of up to `amplitude`, new every `hold` decisions."""

    amplitude: float
    hold: int = 1
    held: list[Any] = field(default_factory=lambda: [0, None], init=False)  # decisions in this session, and its noise

    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da) in [-1, 1]."""
        action = ask(self.base, window, rows)
        asked, noise = self.held
        noise = torch.rand_like(action) * 2 - 1 if asked % self.hold == 0 else noise
        self.held[:] = asked + 1, noise
        return (action + self.amplitude * noise).clamp(-1, 1)


class Batch(NamedTuple):
    """Episodes at one amplitude."""

    amplitude: float
    successes: int
    episodes: int


def tolerance(play: Callable[[int, float], Batch], batches: int = BATCHES) -> tuple[float, list[Batch]]:
    """The amplitude at which half of the success is left, and what it was found by.

    `play` plays the k-th batch of episodes at an amplitude: at first at 0, then wherever half is expected by what is
    known so far. Raises UserError where none succeeds.
    """
    known = [play(0, 0.0)]
    while len(known) < batches:
        known.append(play(len(known), min(max(halved_at(known), SMALLEST), LARGEST)))
    if not any(batch.successes for batch in known):
        n = sum(batch.episodes for batch in known)
        raise UserError(f"bound = tolerance: in {n} episodes the base succeeded in none. Give a number as the bound.")
    return min(halved_at(known), LARGEST), known


def halved_at(batches: list[Batch]) -> float:
    """Geometric mean of the amplitude's posterior: success falls as p / (1 + (amplitude / it) ** steepness).

    Before anything is known all amplitudes are as likely on a logarithmic scale, all p, and all of three steepnesses.
    """
    at = np.geomspace(SMALLEST / 2, 2 * LARGEST, 80)[:, None, None]
    p, steepness = np.linspace(0.025, 0.975, 39)[:, None], np.array([1.5, 3.0, 6.0])
    log = np.zeros((len(at), len(p), len(steepness)))
    for amplitude, successes, episodes in batches:
        rate = p / (1 + (amplitude / at) ** steepness)
        log += successes * np.log(rate) + (episodes - successes) * np.log1p(-rate)
    weight = np.exp(log - log.max()).sum(axis=(1, 2))
    return math.exp((weight * np.log(at[:, 0, 0])).sum() / weight.sum())
