"""Rewards that only a whole episode has: its decisions are held back until it is done."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from policy_decorator.types import Transition


class WholeEpisodes:
    """Gives the decisions of B environments, episode by episode, rewards of `score`, as n-decision transitions.

    What the environment rewards is not read. An episode that ran out of time is scored like any other; only the value
    behind it differs, as `terminated` says.
    """

    def __init__(self, score: Callable[[Tensor], Tensor], n: int, gamma: float, frame: int) -> None:
        """`score` maps the T + 1 newest frames (T + 1, Do) of an episode to rewards (T + 1,); Do is `frame`.

        The first reward is of the frame before any decision and is left out.
        """
        self.score, self.n, self.gamma, self.frame = score, n, gamma, frame
        self.held: list[Transition] = []  # the latest decisions, oldest first, as far back as any running episode goes
        self.lengths = torch.zeros(0, dtype=torch.int64)  # (B,) decisions of the running episodes, on the CPU

    def push(self, t: Transition, done: Tensor) -> Transition | None:
        """Take one decision, `done` (B,) bool on the CPU where its episode ended; return the episodes that did."""
        if not len(self.lengths):
            self.lengths = torch.zeros(len(done), dtype=torch.int64)
        self.held.append(t)
        self.lengths += 1
        complete = self._episodes(done) if done.any() else None
        self.lengths[done] = 0
        del self.held[: len(self.held) - int(self.lengths.max())]
        return complete

    def _episodes(self, done: Tensor) -> Transition:
        rows, longest = done.nonzero()[:, 0].tolist(), int(self.lengths[done].max())
        steps = Transition(*(torch.stack(xs) for xs in zip(*self.held[-longest:], strict=True)))  # (L, B, ...)
        parts = [self._rewarded(Transition(*(x[-int(self.lengths[row]) :, row] for x in steps))) for row in rows]
        return Transition(*(torch.cat(xs) for xs in zip(*parts, strict=True)))

    def _rewarded(self, t: Transition) -> Transition:
        """One episode's decisions (T, ...) as n-decision transitions."""
        frames = torch.cat([t.obs[:1], t.next_obs])[:, -self.frame :]  # (T + 1, Do)
        rewards = self.score(frames)[1:]
        length, device = len(rewards), rewards.device
        discounts = self.gamma ** torch.arange(self.n, device=device, dtype=rewards.dtype)
        returns = F.pad(rewards, (0, self.n - 1)).unfold(0, self.n, 1) @ discounts  # (T,)
        row = torch.arange(length, device=device)
        last = (row + self.n - 1).clamp(max=length - 1)
        return t._replace(
            reward=returns,
            terminated=t.terminated[last],
            decisions=(last - row + 1).to(returns.dtype),
            next_obs=t.next_obs[last],
            next_base=t.next_base[last],
        )

    def state(self) -> list[Any]:
        return [self.lengths.clone(), *(tuple(t) for t in self.held)]

    def restore(self, state: list[Any]) -> None:
        self.lengths = state[0].cpu()
        self.held = [Transition(*columns) for columns in state[1:]]
