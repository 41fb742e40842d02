"""Somebody else's policy that keeps its memory in its attributes: queues of actions, a hidden state, a step counter.

Such an object plays one episode at a time. Here it plays one in every row of the batch: before a row is asked, the
attributes that its last question left behind are put back in their place.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from policy_decorator.base_policies.answers import WrongShape, checked, shaped
from policy_decorator.errors import UserError

Attributes = list[dict[str, Any]]
"""Of every object that remembers."""


class Rowwise:
    """A `StatefulPolicy` around one that remembers a single episode. Rows are asked one after the other.

    Args:
        policy: the object whose attributes are the memory; so are those of its attributes that have a `reset`.
        begin: makes it forget. It must give the policy new queues instead of emptying those that it has, or else
            leave that to a `reset` of theirs.
        choose: what it does, (Do,) -> (Da,), on any device.
        thinks: whether the next question is one to the policy's network, and not only to its queue of actions.
    """

    context = chunk = 1

    def __init__(
        self,
        policy: Any,
        action_size: int,
        begin: Callable[[], object],
        choose: Callable[[Tensor], Any],
        thinks: Callable[[], bool] = lambda: True,
    ) -> None:
        self.policy, self.action_size = policy, action_size
        self.behind = policy
        self._begin, self._choose, self._thinks = begin, choose, thinks
        self._memory: dict[int, Attributes] = {}
        self.queries = 0

    def session(self) -> Self:
        """The same policy with an empty memory of its own."""
        return type(self)(self.policy, self.action_size, self._begin, self._choose, self._thinks)

    def reset(self, rows: Tensor) -> None:
        """Episodes begin in `rows` (K,)."""
        for row in rows.tolist():
            self._memory.pop(row, None)

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor) -> Tensor:
        """(K, To, Do), (K,) -> (K, 1, Da) in [-1, 1]. Raises UserError for answers that are none."""
        obs = window[:, -1]
        answers = [self._ask(row, one) for row, one in zip(rows.tolist(), obs, strict=True)]
        return checked(torch.stack(answers).to(device=obs.device, dtype=torch.float32))

    def _ask(self, row: int, obs: Tensor) -> Tensor:
        if row in self._memory:
            for thing, attributes in zip(_remembering(self.policy), self._memory[row], strict=True):
                vars(thing).clear()
                vars(thing).update(attributes)
        else:
            self._begin()
        self.queries += self._thinks()
        try:
            action = shaped(self._choose(obs.clone()), (), None, self.action_size)
        except WrongShape as error:
            raise UserError(f"The policy {error}") from None
        self._memory[row] = [dict(vars(thing)) for thing in _remembering(self.policy)]
        return action.to("cpu", torch.float32)


def _remembering(policy: Any) -> list[Any]:
    """The policy and, inside it, what has a `reset` of its own: an ensemble over time, a planner and its actor."""
    inside = [x for x in vars(policy).values() if hasattr(type(x), "reset") and not isinstance(x, nn.Module)]
    return [policy, *(thing for part in inside if hasattr(part, "__dict__") for thing in _remembering(part))]
