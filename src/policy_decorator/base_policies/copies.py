"""Anybody's object with a memory as a base policy: `reset()` where an episode begins, then `act(obs)`.

All rows of a batch would share its one memory. So every row has a copy of the object, which begins anew with that row's
episodes. Parameters of networks are not copied.
"""

import copy
import inspect
from typing import Any, Self

import torch
from torch import Tensor, nn

from policy_decorator.base_policies.answers import device_of
from policy_decorator.base_policies.external import Arrays, CallablePolicy, action_of
from policy_decorator.errors import UserError


class Copies:
    """A `StatefulPolicy`: a copy of `policy` for every row. Rows are asked one after the other.

    `policy` has `reset()` and `act(obs)`, or is itself called, with one observation (Do,) or a batch of one (1, Do),
    torch or numpy: which of them is found out at the first decision, with a copy that is then thrown away.

    Raises:
        UserError: a `reset` that wants arguments or changes parameters, an object that cannot be copied.
    """

    context = chunk = 1

    def __init__(self, policy: Any, action_size: int) -> None:
        self.policy, self.action_size, self.behind = policy, action_size, policy
        try:
            inspect.signature(policy.reset).bind()
        except TypeError as error:
            raise UserError(
                f"{_name(policy)} has a reset that cannot be called without arguments ({error}), as it is where an "
                "episode begins. Give a function that asks the policy, if it remembers nothing."
            ) from None
        self._check_reset()
        self._how: dict[str, Any] | None = None
        self._rows: dict[int, tuple[Any, CallablePolicy]] = {}
        self._begun: set[int] = set()
        self.queries = 0

    def session(self) -> Self:
        """The same policy with an empty memory of its own."""
        one = copy.copy(self)
        one._rows, one._begun, one.queries = {}, set(), 0
        return one

    def reset(self, rows: Tensor) -> None:
        """Episodes begin in `rows` (K,)."""
        self._begun.difference_update(rows.tolist())

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor) -> Tensor:
        """(K, To, Do), (K,) -> (K, 1, Da) in [-1, 1]. Raises UserError for answers that are none."""
        self._how = self._how or self._find_out(window[:1])
        answers: list[Tensor] = []
        for k, row in enumerate(rows.tolist()):
            if row not in self._rows:
                self._rows[row] = self._copy(**self._how)
                self._rows[row][1].style(window[k : k + 1, -1])  # asked on trial, before it begins
            own, asked = self._rows[row]
            if row not in self._begun:
                own.reset()
                self._begun.add(row)
            answers.append(asked.act(window[k : k + 1]))
        self.queries += len(answers)
        return torch.cat(answers)

    def _find_out(self, window: Tensor) -> dict[str, Any]:
        """How it is to be asked, on (1, To, Do). Raises UserError."""
        problems: list[str] = []
        for one_row_batch in (False, True):
            _, asked = self._copy(one_row_batch)
            try:
                asked.act(window)
            except UserError as error:
                problems.append(str(error))
            else:
                return {"one_row_batch": one_row_batch, "arrays": asked.style(window[:, -1]).arrays}
        raise UserError(problems[0])

    def _check_reset(self) -> None:
        """On a copy that shares nothing: a reset that draws new parameters begins no episode. Raises UserError."""
        own = self._copied({})
        before = [p.detach().clone() for p in _parameters(own)]
        own.reset()
        if not all(torch.equal(p, q) for p, q in zip(before, _parameters(own), strict=True)):
            raise UserError(
                f"{_name(self.policy)} has a reset that changes its parameters, where one that begins an episode was "
                "expected. Give a function that asks the policy."
            )

    def _copied(self, shared: dict[int, Any]) -> Any:
        try:
            return copy.deepcopy(self.policy, shared)
        except Exception as error:  # whatever a foreign object raises
            raise UserError(
                f"{_name(self.policy)} has a reset, so that every row of a batch needs a copy of its own, and cannot "
                f"be copied ({type(error).__name__}: {error}). Give a StatefulPolicy, or a function that asks it, if "
                "it remembers nothing."
            ) from None

    def _copy(self, one_row_batch: bool = False, arrays: Arrays | None = None) -> tuple[Any, CallablePolicy]:
        """A copy that has begun an episode, and how a row of it is asked."""
        own = self._copied({id(p): p for p in _parameters(self.policy)})
        own.reset()
        ask = own.act if callable(getattr(own, "act", None)) else own

        def choose(obs: Any) -> Any:
            return action_of(ask(obs[None]))[0] if one_row_batch else action_of(ask(obs))

        how: dict[str, Any] = {"behind": self.policy, "device": device_of(self.policy), "arrays": arrays}
        return own, CallablePolicy(choose, self.action_size, batched=False, **how)


def _parameters(policy: Any) -> list[nn.Parameter]:
    """Of the network that it is, or of those that it has."""
    parts = (policy, *getattr(policy, "__dict__", {}).values())
    return [p for part in parts if isinstance(part, nn.Module) for p in part.parameters()]


def _name(policy: Any) -> str:
    return f"The policy ({type(policy).__name__})"
