"""Where batches come from: a ring of transitions, and n-step returns in front of it."""

from typing import Any, Protocol

import torch
from torch import Tensor

from policy_decorator.types import Transition


class DataSource(Protocol):
    """Anything one can sample training batches from."""

    def sample(self, batch_size: int) -> Transition: ...


class Replay:
    """A ring of transitions on the learner's device, allocated from the first one it is given."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.size, self.head = capacity, 0, 0
        self.data: Transition | None = None

    def add(self, t: Transition) -> None:
        """Append the rows of `t`, overwriting the oldest once full."""
        n = len(t.reward)
        if n > self.capacity:
            raise ValueError(f"{n} transitions at once do not fit a replay of {self.capacity}")
        if self.data is None:
            self.data = Transition(*(x.new_zeros((self.capacity, *x.shape[1:])) for x in t))
        rows = torch.arange(self.head, self.head + n, device=t.reward.device) % self.capacity
        for store, x in zip(self.data, t, strict=True):
            store[rows] = x
        self.head = (self.head + n) % self.capacity
        self.size = min(self.size + n, self.capacity)

    def sample(self, batch_size: int) -> Transition:
        """Uniformly, with replacement."""
        if self.data is None:
            raise ValueError("the replay is empty: collect before sampling")
        rows = torch.randint(self.size, (batch_size,), device=self.data.reward.device)
        return Transition(*(x[rows] for x in self.data))

    def state(self) -> dict[str, Any]:
        data = [] if self.data is None else [x[: self.size].clone() for x in self.data]
        return {"head": self.head, "size": self.size, "data": data}

    def restore(self, state: dict[str, Any]) -> None:
        self.data, self.size, self.head = None, 0, 0
        if state["data"]:
            self.add(Transition(*state["data"]))
        self.head = state["head"]


class NStep:
    """Turns one-decision transitions of B environments into n-decision ones.

    reward = sum_k gamma^k r_k over at most n decisions, fewer where the episode ends. Entropy bonuses of the
    decisions in between are left out, as is usual for n-step SAC.
    """

    def __init__(self, n: int, gamma: float) -> None:
        self.n, self.gamma = n, gamma
        # The latest P < n decisions, oldest first:
        self.begun: list[tuple[Tensor, Tensor, Tensor]] = []  # their obs, raw and base
        self.returns = torch.zeros(0)  # (P, B) rewards since, summed up
        self.waiting = torch.zeros(0)  # (P, B) bool, on the CPU: whether the episode still runs
        self.discounts = torch.zeros(0)  # (n - 1, B) gamma^(n - 1), ..., gamma

    def push(self, t: Transition, done: Tensor) -> Transition | None:
        """Take one decision, `done` (B,) bool on the CPU where its episode ended; return what is now complete."""
        if self.n == 1:
            return t
        if not self.begun:
            self.returns, self.waiting = t.reward.new_zeros(0, len(done)), done.new_zeros(0, len(done))
        if not len(self.discounts):
            ages = range(self.n - 1, 0, -1)
            self.discounts = torch.stack([self.gamma ** torch.full_like(t.reward, age) for age in ages])
        discounts = self.discounts[self.n - 1 - len(self.begun) :]
        begun = [*self.begun, (t.obs, t.raw, t.base)]
        returns = torch.cat([self.returns + discounts * t.reward, t.reward[None]])
        waiting = torch.cat([self.waiting, torch.ones_like(done)[None]])
        ready, full = waiting & done, len(begun) == self.n
        ready[0] |= waiting[0] & full
        self.begun, self.returns, self.waiting = begun[full:], returns[full:], (waiting & ~done)[full:]

        some = ready.any(dim=1)
        complete = [
            t._replace(obs=o, raw=r, base=b, reward=returns[i], decisions=torch.full_like(t.reward, len(begun) - i))
            for i, (o, r, b) in enumerate(begun)
            if some[i]
        ]
        return _rows(complete, ready[some].flatten()) if complete else None

    def state(self) -> list[Any]:
        return [(*began, *rest) for began, *rest in zip(self.begun, self.returns, self.waiting, strict=True)]

    def restore(self, state: list[Any]) -> None:
        self.begun = [(obs, raw, base) for obs, raw, base, _, _ in state]
        if state:
            self.returns, self.waiting = torch.stack([s[3] for s in state]), torch.stack([s[4] for s in state]).cpu()


def _rows(parts: list[Transition], which: Tensor) -> Transition:
    """All `parts` one below the other; of their rows those for which `which`, bool and on the CPU, says so."""
    batch = parts[0] if len(parts) == 1 else Transition(*(torch.cat(xs) for xs in zip(*parts, strict=True)))
    if which.all():
        return batch
    rows = which.nonzero()[:, 0].to(batch.reward.device, non_blocking=True)
    return Transition(*(x[rows] for x in batch))
