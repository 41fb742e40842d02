"""Where batches come from: a ring of transitions, and n-step returns in front of it."""

from typing import Any, Protocol

import torch
from torch import Tensor

from policy_decorator.types import Transition


class DataSource(Protocol):
    """Anything one can sample training batches from."""

    def sample(self, batch_size: int) -> Transition: ...


class Replay:
    """A ring of transitions on the learner's device, allocated from the first one it is given.

    `kind`: their type, where they have more columns than a `Transition`.
    """

    def __init__(self, capacity: int, kind: type[Transition] = Transition) -> None:
        self.capacity, self.size, self.head, self.kind = capacity, 0, 0, kind
        self.data: Transition | None = None
        self.pictures: Pictures | None = None

    def add(self, t: Transition) -> None:
        """Append the rows of `t`, the oldest first, overwriting the oldest once full."""
        if len(t.reward) > self.capacity:  # whole episodes, which come together
            t = self.kind(*(x[-self.capacity :] for x in t))
        n = len(t.reward)
        if not isinstance(t.obs, Tensor):
            self.pictures = self.pictures or Pictures(self.capacity)
            t = t._replace(obs=self.pictures.put(t.obs), next_obs=self.pictures.put(t.next_obs))
        if self.data is None:
            self.data = self.kind(*(x.new_zeros((self.capacity, *x.shape[1:])) for x in t))
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
        if self.pictures is None:
            return self.kind(*(x[rows] for x in self.data))
        recent = (self.head - 1 - rows % max(1, self.size // 2)) % self.capacity
        rows = torch.where(self.pictures.has(self.data.obs[rows]), rows, recent)
        batch = Transition(*(x[rows] for x in self.data))
        return batch._replace(obs=self.pictures.get(batch.obs), next_obs=self.pictures.get(batch.next_obs))

    def state(self) -> dict[str, Any]:
        """On the CPU: a GPU may not have room for its replay twice."""
        data = [] if self.data is None else [_to_cpu(x[: self.size], self.data.reward.device) for x in self.data]
        pictures = None if self.pictures is None else self.pictures.state()
        return {"head": self.head, "size": self.size, "data": data, "pictures": pictures}

    def restore(self, state: dict[str, Any], device: torch.device | None = None) -> None:
        """Back to `state`, which may be a smaller replay's, on `device` or else where that is."""
        self.data, self.pictures, self.size, self.head = None, None, state["size"], state["head"]
        if state["data"]:
            t = self.kind(*state["data"])
            if self.head != self.size < self.capacity:  # a ring that was full and is not any more: the oldest first
                t, self.head = self.kind(*(torch.cat([x[self.head :], x[: self.head]]) for x in t)), self.size
            device = device or t.reward.device
            self.data = self.kind(*(x.new_zeros((self.capacity, *x.shape[1:]), device=device) for x in t))
            for store, x in zip(self.data, t, strict=True):
                store[: len(x)] = x
        if state["pictures"] is not None:
            self.pictures = Pictures(self.capacity)
            self.pictures.restore(state["pictures"], device)


class Pictures:
    """The pictures of frames by the frames' numbers, each stored once: a frame is seen before one decision and after
    the decision before it.

    Numbers count on, one per decision and one more per episode. There is room for an eighth more frames than
    transitions; where episodes are shorter than eight decisions, the oldest transitions lose theirs (`has`).
    """

    def __init__(self, transitions: int) -> None:
        self.room = transitions + transitions // 8 + 1
        self.stored: dict[str, Tensor] = {}
        self.newest = torch.zeros(0, dtype=torch.long)  # the highest number so far, on the device
        self.lost = -1  # the highest number whose pictures a smaller store had given up

    def put(self, obs: Tensor) -> Tensor:
        """Store the pictures of `obs` (B,), and return what is left of it: `state` and `frame`."""
        known: Any = obs
        names = [name for name in known.keys() if name not in ("state", "frame")]  # noqa: SIM118 (a TensorDict)
        if not self.stored:
            self.stored = {name: known[name].new_zeros((self.room, *known[name].shape[1:])) for name in names}
            self.newest = known["frame"].max()
        self.newest = torch.maximum(self.newest, known["frame"].max())
        for name in names:
            self.stored[name][known["frame"] % self.room] = known[name]
        return known.exclude(*names)

    def has(self, obs: Tensor) -> Tensor:
        """(B,) bool: whether nothing has taken the place of the pictures of `obs`."""
        frame: Any = obs["frame"]  # pyright: ignore[reportArgumentType, reportCallIssue]
        return frame > (self.newest - self.room).clamp(min=self.lost)

    def get(self, obs: Tensor) -> Tensor:
        """`obs` with its pictures."""
        known: Any = obs
        slots = known["frame"] % self.room
        return known.update({name: x[slots] for name, x in self.stored.items()})

    def state(self) -> dict[str, Tensor]:
        kept = {"newest": self.newest, "lost": torch.tensor(self.lost), **self.stored}
        return {name: x.cpu() for name, x in kept.items()}

    def restore(self, state: dict[str, Tensor], device: torch.device | None = None) -> None:
        """Back to `state`, which may be another capacity's."""
        stored = dict(state)
        newest, self.lost = stored.pop("newest"), int(stored.pop("lost", -1))
        room = len(next(iter(stored.values())))
        if room != self.room:
            self.lost = max(self.lost, int(newest) - room)
            stored = {name: self._rearranged(x, int(newest), device) for name, x in stored.items()}
        self.newest = newest.to(device or newest.device)
        self.stored = {name: x.to(device or x.device) for name, x in stored.items()}

    def _rearranged(self, x: Tensor, newest: int, device: torch.device | None) -> Tensor:
        """Pictures of another room, each where it belongs in this one."""
        ours = x.new_zeros((self.room, *x.shape[1:]), device=device)
        numbers = torch.arange(max(0, newest + 1 - min(len(x), self.room)), newest + 1)
        for some in numbers.split(4096):
            ours[some % self.room] = x[some % len(x)].to(ours.device)
        return ours


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


def _to_cpu(x: Tensor, device: torch.device) -> Tensor:
    """A copy of `x`, which is on `device`."""
    return x.clone() if device.type == "cpu" else x.cpu()


def _rows(parts: list[Transition], which: Tensor) -> Transition:
    """All `parts` one below the other; of their rows those for which `which`, bool and on the CPU, says so."""
    batch = parts[0] if len(parts) == 1 else Transition(*(torch.cat(xs) for xs in zip(*parts, strict=True)))
    if which.all():
        return batch
    rows = which.nonzero()[:, 0].to(batch.reward.device, non_blocking=True)
    return Transition(*(x[rows] for x in batch))
