"""Policies with a memory (a recurrent network, a queue of actions, a server) and those without, asked in one way.

Whoever plays episodes opens a `session`, says with `reset` where they begin, and tells in `act` which rows it asks
about. A policy without a memory goes through the same lines and is asked as it always was.
"""

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
    """Tensors with one entry per row of the batch, all zero where an episode begins; they grow with the highest row."""

    def __init__(self, **entries: Tensor) -> None:
        """By name, a tensor like one row's entry: its shape, type and device."""
        self.rows = {name: x.new_zeros(0, *x.shape) for name, x in entries.items()}

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """(K,) -> by name, the entries (K, ...)."""
        self._grow(rows)
        return {name: x[rows.to(x.device)] for name, x in self.rows.items()}

    def write(self, rows: Tensor, entries: Mapping[str, Tensor]) -> None:
        """By name, what `read` will give for these rows."""
        self._grow(rows)
        for name, x in entries.items():
            self.rows[name][rows.to(x.device)] = x

    def reset(self, rows: Tensor) -> None:
        """Zero in `rows` (K,)."""
        self._grow(rows)
        for x in self.rows.values():
            x[rows.to(x.device)] = 0

    def state(self) -> dict[str, Tensor]:
        return {name: x.clone() for name, x in self.rows.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.rows = {name: state[name].to(x.device, x.dtype, copy=True) for name, x in self.rows.items()}

    def _grow(self, rows: Tensor) -> None:
        for name, x in self.rows.items():
            missing = int(rows.max()) + 1 - len(x) if len(rows) else 0
            if missing > 0:
                self.rows[name] = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
