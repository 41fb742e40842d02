"""Action chunks one action at a time, so that a residual can correct every environment step.

    env step      0     1     2     3     4     5          Ta = 3
    base asked    x                 x
    executed      a_0   a_1   a_2   b_0   b_1   b_2        and anew where an episode begins

Only who else decides, and how often, is not as with whole chunks: the base sees the same windows, those of the
steps at which it is asked, and answers as it does alone.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from policy_decorator.errors import UserError
from policy_decorator.memory import AnyPolicy, Around, RowMemory, ask


def chunk_of(policy: AnyPolicy) -> int:
    """Ta, actions it answers with."""
    return int(getattr(policy, "chunk", 1))


def step_by_step(policy: AnyPolicy) -> AnyPolicy:
    """The policy with one action per answer: itself where it is one already."""
    return policy if chunk_of(policy) == 1 else ChunkQueue(policy, chunk_of(policy))


@dataclass(frozen=True)
class ChunkQueue(Around):
    """Asks a policy of chunks once in `size` steps of a row, or at its reset, and hands out the actions one by one."""

    size: int
    memory: RowMemory = field(default_factory=RowMemory, init=False)

    @property
    def chunk(self) -> int:
        return 1

    def reset(self, rows: Tensor) -> None:
        self.memory.reset(rows)
        super().reset(rows)

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(K, To, Do), (K,) -> (K, 1, Da). Raises UserError where the policy answers with another number of actions."""
        rows = torch.arange(len(window)) if rows is None else rows
        left = self.memory.read("left", rows, torch.zeros((), dtype=torch.int64))  # (K,) actions in the queue
        if len(empty := (left == 0).nonzero()[:, 0]):
            self.memory.write("actions", rows[empty], self._chunks(window, rows, empty))
            left[empty] = self.size
        self.memory.write("left", rows, left - 1)
        actions = self.memory.entries["actions"]  # (rows, Ta, Da)
        at = [x.to(actions.device, non_blocking=True) for x in (rows, self.size - left)]
        return actions[at[0], at[1]][:, None]

    def _chunks(self, window: Tensor, rows: Tensor, empty: Tensor) -> Tensor:
        """New ones (E, Ta, Da) for the rows whose queue is `empty` (E,)."""
        where = empty.to(window.device, non_blocking=True)
        answer = ask(self.base, window if len(empty) == len(rows) else window[where], rows[empty])
        if answer.ndim != 3 or answer.shape[:2] != (len(empty), self.size):
            raise UserError(
                f"The base policy answers with shape {tuple(answer.shape)}, but says that its chunks have "
                f"{self.size} actions for each of {len(empty)} rows: correct one of the two."
            )
        return answer

    def state(self) -> dict[str, Any] | None:
        base = super().state()
        return None if base is None else {"queue": self.memory.state(), "base": base}

    def restore(self, state: dict[str, Any]) -> None:
        self.memory.restore(state["queue"])
        super().restore(state["base"])


def unqueued(policy: AnyPolicy) -> AnyPolicy:
    """The policy that a queue is around; any other as it is."""
    return cast(AnyPolicy, policy.base) if isinstance(policy, ChunkQueue) else policy
