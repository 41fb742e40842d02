"""Demonstrations as transitions of a residual: what the base would have done there, and the correction to it.

raw = (action - base) / alpha, unclipped, so that base + alpha * raw is the demonstrated action exactly. Not in the
paper; a share of every batch from demonstrations is RLPD's symmetric sampling (arXiv:2302.02948) with a knob, and a
share that falls as own experience grows is DICE-RL's (arXiv:2603.10263).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_decorator.rl.replay import DataSource, Pictures, Replay
from policy_decorator.types import Transition


@dataclass(frozen=True)
class Demonstrated:
    """Episodes one after the other and the base policy's answers in them."""

    obs: Tensor  # (N, Do), or frames (N,) with pictures
    action: Tensor  # (N, 1, Da)
    base: Tensor  # (N, 1, Da)
    success: Tensor  # (N,) bool
    lengths: Tensor  # (E,)
    ends_at_success: bool = True  # then each is cut at its first success, behind which there is no value
    base_queries: int = 0


def transitions(d: Demonstrated, bound: float, *, n_step: int, gamma: float, reward_shift: float) -> Transition:
    """n-step transitions. Rows whose next observation the demonstrations do not hold are left out."""
    size = len(d.obs)
    end = d.lengths.cumsum(0).repeat_interleave(d.lengths)  # (N,) row behind the episode
    row = torch.arange(size, device=d.obs.device)
    decisions = (end - row).clamp(max=n_step)  # (N,)
    reward, reached = torch.zeros(size, device=d.obs.device), torch.zeros_like(d.success)
    for k in range(n_step):
        inside = k < decisions
        at = (row + k).clamp(max=size - 1)
        reward += inside * gamma**k * (d.success[at].float() + reward_shift)
        reached |= inside & d.success[at]
    following = row + decisions
    ends = reached & d.ends_at_success
    keep = ends | (following < end)
    following = following.minimum(end - 1)  # behind a success nothing is seen
    raw = (d.action - d.base) / bound
    columns = (
        d.obs, raw, d.base, reward, ends.float(), decisions.float(), d.obs[following], d.base[following]
    )  # fmt: skip
    return Transition(*(x[keep] for x in columns))


def windows_of(d: Demonstrated, rows: Tensor, context: int) -> Tensor:
    """What rows (N, *) are in the windows of their episodes, (N, To, *); before an episode its first is repeated."""
    start = (d.lengths.cumsum(0) - d.lengths).repeat_interleave(d.lengths)  # (N,)
    back = torch.arange(1 - context, 1, device=rows.device)
    row = torch.arange(len(rows), device=rows.device)[:, None] + back  # (N, To)
    return rows[torch.maximum(row, start[:, None])]


def as_source(batch: Transition, frames: Tensor | None = None) -> Replay:
    """A fixed set of transitions to sample from; `frames` (N,) have the pictures, by number, that it lacks."""
    source = Replay(len(batch.reward), type(batch))
    if frames is not None:
        source.pictures = Pictures(len(frames))
        source.pictures.put(frames)
    source.add(batch)
    return source


@dataclass(frozen=True)
class Share:
    """A share that goes from one value to another in a straight line, as a function of the steps done."""

    begin: float
    end: float
    start: int = 0
    """Environment steps before it begins to change."""
    steps: int = 0
    """Environment steps over which it changes; 0: at once."""

    def __call__(self, step: int) -> float:
        progress = min(max(step - self.start, 0) / self.steps, 1.0) if self.steps else 1.0
        return self.begin + progress * (self.end - self.begin)


@dataclass(frozen=True)
class Pooled:
    """The share of demonstrations that lie among own decisions, where each is drawn as often as any other."""

    own: Replay
    shown: Replay

    def __call__(self) -> float:
        return self.shown.size / (self.shown.size + self.own.size)


@dataclass(frozen=True)
class Mixed:
    """A share of every batch from the second source."""

    first: DataSource
    second: DataSource
    share: Callable[[], float]

    def sample(self, batch_size: int) -> Transition:
        n = round(batch_size * self.share())
        parts = self.first.sample(batch_size - n), self.second.sample(n)
        return type(parts[0])(*(torch.cat(pair) for pair in zip(*parts, strict=True)))
