"""A step of environments in two halves, so that something else can be done while they take it; its rows; environments
around others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from policy_decorator.types import Step, VectorEnv


@runtime_checkable
class Apart(Protocol):
    """Environments whose simulators may be in processes of their own: `step` is `send`, then `receive`."""

    def send(self, action: Tensor) -> None: ...
    def receive(self) -> Step: ...


def send(env: VectorEnv, action: Tensor) -> Callable[[], Step]:
    """Begin a step; calling what is returned waits for the answer. Environments of this process step at once."""
    if isinstance(env, Apart):
        env.send(action)
        return env.receive
    out = env.step(action)
    return lambda: out


@dataclass
class AroundVector:
    """What environments around others have from them: all but `reset` and `step`."""

    env: VectorEnv

    @property
    def drawn_at_reset(self) -> bool:
        return getattr(self.env, "drawn_at_reset", False)

    def state(self) -> dict[str, Tensor]:
        return self.env.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.env.restore(state)

    def close(self) -> None:
        self.env.close()


def chosen(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` in the rows (B,) bool that say so, else `b`; both (B, ...), tensors or TensorDicts."""
    return torch.where(rows.view(-1, *(1,) * (a.ndim - 1)), a, b)


def returns_end(step: Step, success_ends_value: bool) -> Tensor:
    """(B,) bool, on the CPU: where no reward of a later decision counts for those before it."""
    return step.done | step.success if success_ends_value else step.done
