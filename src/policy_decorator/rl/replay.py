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
        self.pending: list[tuple[Transition, Tensor]] = []  # oldest first, with the rows still open (B,) bool

    def push(self, t: Transition, done: Tensor) -> Transition | None:
        """Take one decision, `done` (B,) bool where its episode ended; return what is now complete."""
        if self.n == 1:
            return t
        opened = [(_extend(old, t, alive, self.gamma), alive) for old, alive in self.pending]
        opened.append((t, torch.ones_like(done)))
        complete: list[Transition] = []
        self.pending = []
        for i, (old, alive) in enumerate(opened):
            full = len(opened) - i == self.n
            ready = alive if full else alive & done
            complete.append(Transition(*(x[ready] for x in old)))
            if not full:
                self.pending.append((old, alive & ~done))
        batch = Transition(*(torch.cat(xs) for xs in zip(*complete, strict=True)))
        return batch if len(batch.reward) else None

    def state(self) -> list[Any]:
        return [(list(t), alive) for t, alive in self.pending]

    def restore(self, state: list[Any]) -> None:
        self.pending = [(Transition(*t), alive) for t, alive in state]


def _extend(old: Transition, new: Transition, alive: Tensor, gamma: float) -> Transition:
    """`old` followed by `new`, in the rows whose episode still runs."""
    a = alive.float()
    pick = torch.where
    return old._replace(
        reward=old.reward + a * gamma**old.decisions * new.reward,
        terminated=pick(alive, new.terminated, old.terminated),
        decisions=old.decisions + a,
        next_obs=pick(alive[:, None], new.next_obs, old.next_obs),
        next_base=pick(alive[:, None, None], new.next_base, old.next_base),
    )
