"""Policies with a memory (a recurrent network, a queue of actions, a server) and those without, asked in one way.

Whoever plays episodes opens a `session`, says with `reset` where they begin, and tells in `act` which rows it asks
about. A policy without a memory goes through the same lines and is asked as it always was.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Self, TypeGuard, cast

import torch
from torch import Tensor

from policy_decorator.types import BasePolicy, StatefulPolicy

AnyPolicy = BasePolicy | StatefulPolicy


def has_memory(policy: AnyPolicy) -> TypeGuard[StatefulPolicy]:
    """Whether it is a `StatefulPolicy`."""
    return callable(getattr(policy, "session", None))


def session(policy: AnyPolicy) -> StatefulPolicy:
    """The policy with an empty memory and a count of its own."""
    return policy.session() if has_memory(policy) else Memoryless(cast(BasePolicy, policy))


def ask(policy: AnyPolicy, window: Tensor, rows: Tensor | None = None) -> Tensor:
    """(K, To, Do), (K,) -> (K, Ta, Da); the k-th window is row k's unless told otherwise."""
    if not has_memory(policy):
        return cast(BasePolicy, policy).act(window)
    return policy.act(window, torch.arange(len(window)) if rows is None else rows)


def kept(policy: StatefulPolicy) -> dict[str, Any] | None:
    """Its memory as dicts and tensors, None where it cannot be saved."""
    state = getattr(policy, "state", None)
    return state() if state is not None else None


class Memoryless:
    """A policy without a memory in the place of one that has it."""

    def __init__(self, base: BasePolicy) -> None:
        self.base, self.queries = base, 0

    @property
    def context(self) -> int:
        return self.base.context

    @property
    def chunk(self) -> int:
        return int(getattr(self.base, "chunk", 1))

    def session(self) -> "Memoryless":
        return Memoryless(self.base)

    def reset(self, rows: Tensor) -> None: ...

    def act(self, window: Tensor, rows: Tensor) -> Tensor:
        self.queries += len(window)
        return self.base.act(window)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Around:
    """What a policy around another has from it: all but `act`."""

    base: AnyPolicy

    @property
    def context(self) -> int:
        return self.base.context

    @property
    def chunk(self) -> int:
        return int(getattr(self.base, "chunk", 1))

    @property
    def queries(self) -> int:
        """Questions to the innermost policy, in this session; 0 outside one."""
        return int(getattr(self.base, "queries", 0))

    def session(self) -> Self:
        return dataclasses.replace(self, base=session(self.base))

    def reset(self, rows: Tensor) -> None:
        if has_memory(self.base):
            self.base.reset(rows)

    def state(self) -> dict[str, Any] | None:
        return kept(self.base) if has_memory(self.base) else {}

    def restore(self, state: dict[str, Any]) -> None:
        if has_memory(self.base):
            cast(Any, self.base).restore(state)


class RowMemory:
    """Tensors with one entry per row of the batch, all zero where an episode begins; they grow with the highest row.

    Integers are counts: they stay on the CPU, where it is decided what they lead to.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Tensor] = {}  # (rows, ...) each, of the kind first written

    def read(self, name: str, rows: Tensor, like: Tensor) -> Tensor:
        """(K,) -> the entries (K, ...) of a name; `like` is one row's, of the right shape, type and device."""
        return self._room(name, rows, like)[rows.to(like.device)]

    def write(self, name: str, rows: Tensor, values: Tensor) -> None:
        """What `read` will give for these rows; (K,), (K, ...)."""
        if len(rows):
            self._room(name, rows, values[0])[rows.to(values.device)] = values

    def reset(self, rows: Tensor) -> None:
        """Zero in `rows` (K,)."""
        for name, x in self.entries.items():
            if len(rows):
                self._room(name, rows, x[0])[rows.to(x.device)] = 0

    def _room(self, name: str, rows: Tensor, like: Tensor) -> Tensor:
        x = self.entries.get(name, like.new_zeros(0, *like.shape))
        if len(rows) and (missing := int(rows.max()) + 1 - len(x)) > 0:
            x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
        self.entries[name] = x
        return x

    def state(self) -> dict[str, Tensor]:
        return {name: x.clone() for name, x in self.entries.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.entries = {name: x.clone() if x.is_floating_point() else x.cpu().clone() for name, x in state.items()}


class Remembering:
    """What policies that remember in a `RowMemory` have in common. A network shares its parameters among sessions."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.queries, self.memory = 0, RowMemory()

    def session(self) -> Self:
        """The same policy with an empty memory."""
        other = copy.copy(self)
        other.queries, other.memory = 0, RowMemory()
        return other

    def reset(self, rows: Tensor) -> None:
        """Episodes begin in `rows` (K,)."""
        self.memory.reset(rows)

    def state(self) -> dict[str, Tensor]:
        """What it remembers."""
        return self.memory.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Remember what `state` gave."""
        self.memory.restore(state)
