"""Batches whose rewards are computed as they are drawn, for a reward that is still being learned (arXiv:1809.02925).

    reward = sum_k gamma^k score(o_{t+k}, a_{t+k})   over at most n decisions, fewer where an episode ends

and where that end is a termination, what follows for ever: + gamma^decisions / (1 - gamma) ended. What the environment
rewards is not read.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_decorator.rl.replay import Replay
from policy_decorator.types import Transition


@dataclass(frozen=True)
class Scored:
    """n-decision transitions of a replay that holds single decisions, scored anew."""

    replay: Replay
    rows: int
    """Environments whose decisions it was given at a time: a row's next decision is that many rows behind."""
    n: int
    gamma: float
    score: Callable[[Tensor, Tensor], Tensor]
    """Observations (N, Do), raw actions (N, Ta, Da) -> (N,)."""
    ended: Callable[[], Tensor]
    """() of a decision in an episode that is over (an absorbing state's)."""

    def sample(self, batch_size: int) -> Transition:
        """Uniformly over first decisions, with replacement."""
        if self.replay.data is None:
            raise ValueError("the replay is empty: collect before sampling")
        data, size, device = self.replay.data, self.replay.size, self.replay.data.reward.device
        begin = torch.randint(size, (batch_size,), device=device)  # (B,) counted from the oldest
        order = begin + self.rows * torch.arange(self.n, device=device)[:, None]  # (n, B)
        slots = (self.replay.head - size + order.clamp(max=size - 1)) % self.replay.capacity
        obs, raw, following = data.obs[slots], data.raw[slots], data.next_obs[slots]  # (n, B, ...)
        # The next decision of a row belongs to the same episode where it begins with what the last one led to.
        goes_on = (following[:-1] == obs[1:]).all(dim=-1) & (data.terminated[slots[:-1]] == 0) & (order[1:] < size)
        inside = torch.cat([torch.ones_like(begin, dtype=torch.bool)[None], goes_on]).cumprod(dim=0)  # (n, B)
        scores = self.score(obs.flatten(0, 1), raw.flatten(0, 1)).view_as(inside)
        discounts = self.gamma ** torch.arange(self.n, device=device)[:, None]
        decisions = inside.sum(dim=0)
        first, last = slots[0], slots.gather(0, decisions[None] - 1)[0]
        terminated, decided = data.terminated[last], decisions.to(scores.dtype)
        forever = terminated * self.gamma**decided / (1 - self.gamma) * self.ended()
        return Transition(
            obs=obs[0],
            raw=raw[0],
            base=data.base[first],
            reward=(discounts * inside * scores).sum(dim=0) + forever,
            terminated=terminated,
            decisions=decided,
            next_obs=data.next_obs[last],
            next_base=data.next_base[last],
        )
