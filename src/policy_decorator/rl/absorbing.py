"""Absorbing states whose value is learned (DAC, arXiv:1809.02925, Sec. 4.2): an episode that is over goes on for ever.

An observation has one more number: 0 in an episode, 1 in the absorbing state behind its end, where all others are 0.

    (o, a) -> end       becomes  (o, a) -> absorbing, not terminated
    and there is also   (absorbing, 0) -> absorbing,  once per end

so that no value is taken to be zero: whether to end is good or bad is a matter of the absorbing state's reward alone.
A time-out is not an end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from policy_decorator.rl.nets import Critics
from policy_decorator.rl.replay import Replay
from policy_decorator.types import Transition


def absorbing(n: int, obs_size: int, device: torch.device | None = None) -> Tensor:
    """(n, Do + 1)."""
    return F.pad(torch.zeros(n, obs_size, device=device), (0, 1), value=1.0)


def living(obs: Tensor) -> Tensor:
    """(..., Do) -> (..., Do + 1)."""
    return F.pad(obs, (0, 1))


def in_an_episode(t: Transition) -> Transition:
    """Decisions (B, Do) as rows (B, Do + 1) of a batch, none of which ends an episode."""
    return t._replace(obs=living(t.obs), next_obs=living(t.next_obs))


class AbsorbingCritics(Critics):
    """Critics of (B, Do + 1), for which all actions in the absorbing state are the same, 0."""

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        alive = 1 - obs[:, -1:]
        return super().forward(obs, action.flatten(1) * alive)


@dataclass(frozen=True)
class Endless:
    """Batches of a replay of single decisions in which nothing terminates, scored as they are drawn.

    Decisions and absorbing states are drawn alike: a replay of N decisions with E ends counts as N + E. What the
    environment rewards is not read.
    """

    replay: Replay
    score: Callable[[Tensor, Tensor], Tensor]
    """Observations (B, Do + 1), raw actions (B, Ta, Da) -> rewards (B,)."""

    def sample(self, batch_size: int) -> Transition:
        """With replacement. Rows (B, Do + 1); `decisions` is 1."""
        if self.replay.data is None:
            raise ValueError("the replay is empty: collect before sampling")
        ended = self.replay.data.terminated[: self.replay.size].sum()
        b = self.replay.sample(batch_size)
        # Drawn by chance and not by number, so that nothing is read back from the device.
        over = torch.rand_like(b.reward) * (self.replay.size + ended) < ended  # (B,) bool
        gone = absorbing(batch_size, b.obs.shape[1], b.obs.device)
        obs = torch.where(over[:, None], gone, living(b.obs))
        raw = torch.where(over[:, None, None], 0.0, b.raw)
        behind = (over | (b.terminated > 0))[:, None]
        return b._replace(
            obs=obs,
            raw=raw,
            reward=self.score(obs, raw),
            terminated=torch.zeros_like(b.terminated),
            next_obs=torch.where(behind, gone, living(b.next_obs)),
        )
