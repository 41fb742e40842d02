"""Anyone's policy as a base policy: a function, a network, a scripted expert, a Stable-Baselines3 model.

act(window (B, 1, Do)) = fn(obs (B, Do)) or, row by row, fn(obs (Do,));  every answer is checked
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from policy_decorator.errors import UserError
from policy_decorator.memory import AnyPolicy

Arrays = Literal["torch", "numpy"]


@dataclass(frozen=True)
class _Style:
    """How a function wants to be called."""

    arrays: Arrays
    batched: bool

    def __str__(self) -> str:
        return f"{'a batch (B, Do)' if self.batched else 'one row (Do,)'} as a {self.arrays} array"


class _WrongShape(Exception):
    pass


class CallablePolicy:
    """A memoryless function of the newest observation as a base policy.

    `fn` takes a batch (B, Do) or one observation (Do,), as torch tensor or numpy float32 array, and answers
    with as many actions of size `action_size`. How it wants to be called is found out at the first decision,
    by a few trial calls; `batched` and `arrays` settle it beforehand. The function gets a copy of the
    observations, is called without gradients, and none of its parameters is touched. Actions are clamped to
    [-1, 1], as the environment would do with them.

    Raises:
        UserError: no way of calling it gives actions of the right shape, or an action is not finite.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        action_size: int,
        *,
        batched: bool | None = None,
        arrays: Arrays | None = None,
    ) -> None:
        if not callable(fn) or isinstance(fn, type):
            raise UserError(f"A policy must be a function of the observation, got {fn!r}.")
        self.fn = fn
        self.action_size = action_size
        kinds: list[Arrays] = [arrays] if arrays else ["torch"] if isinstance(fn, nn.Module) else ["torch", "numpy"]
        ways = [True, False] if batched is None else [batched]
        self._candidates = [_Style(arrays, way) for way in ways for arrays in kinds]
        self._style: _Style | None = None

    @property
    def context(self) -> int:
        """To: it sees the newest frame alone."""
        return 1

    @property
    def chunk(self) -> int:
        """Ta: actions it answers with."""
        return 1

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, 1, Da) in [-1, 1], float32 on the window's device."""
        obs = window[:, -1]  # (B, Do)
        if self._style is None:
            self._style = self._find_style(obs)
        try:
            actions = self._call(obs, self._style)  # (B, Da)
        except _WrongShape as error:
            raise UserError(f"The policy {error}") from None
        self._check_finite(actions)
        return actions.clamp(-1.0, 1.0).unsqueeze(1)

    def _find_style(self, obs: Tensor) -> _Style:
        probe = obs[:2]
        if len(probe) < 2 or torch.equal(probe[0], probe[1]):
            probe = torch.stack([obs[0], obs[0] + 0.01])  # (2, Do), near enough to be a possible observation
        tried: list[str] = []
        for style in self._candidates:
            try:
                answer = self._call(probe, style)
                if style.batched and self._mixes_rows(probe, answer, style):
                    raise _WrongShape("does not answer for each row on its own.")
                return style
            except Exception as error:  # whatever a foreign function raises means that it is not called like this
                reason = "it " if isinstance(error, _WrongShape) else f"{type(error).__name__}: "
                tried.append(f"\n  with {style}: {reason}{error}")
        raise UserError(
            f"The policy cannot be asked for {self.action_size} actions. Tried:{''.join(tried)}\n"
            "Give a function from observations (B, Do) or (Do,) to actions (B, Da) or (Da,)."
        )

    def _mixes_rows(self, probe: Tensor, answer: Tensor, style: _Style) -> bool:
        """Whether it only seems to take batches, as `lambda obs: obs - obs.mean()` does."""
        again = self._call(probe, style)
        if not torch.equal(again, answer):
            return False  # it is random (or not finite): its answers cannot be compared
        alone = self._call(probe[:1], style)
        return not torch.allclose(alone, answer[:1], rtol=1e-3, atol=1e-4)

    def _call(self, obs: Tensor, style: _Style) -> Tensor:
        size = self.action_size
        if style.batched:
            return self._ask(obs, style, {(len(obs), size), (len(obs), 1, size)}).reshape(-1, size)
        shapes = {(size,), (1, size)} | ({()} if size == 1 else set())
        return torch.stack([self._ask(row, style, shapes).reshape(size) for row in obs])

    def _ask(self, obs: Tensor, style: _Style, shapes: set[tuple[int, ...]]) -> Tensor:
        answer = self.fn(obs.clone() if style.arrays == "torch" else obs.cpu().numpy().copy())
        if not isinstance(answer, Tensor):
            answer = torch.from_numpy(np.array(answer, dtype=np.float32))
        if tuple(answer.shape) not in shapes:
            wanted = " or ".join(str(shape) for shape in sorted(shapes))
            raise _WrongShape(f"answered with shape {tuple(answer.shape)} instead of {wanted}.")
        return answer.detach().to(device=obs.device, dtype=torch.float32)

    def _check_finite(self, actions: Tensor) -> None:
        bad = ~actions.isfinite().all(dim=1)  # (B,)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise UserError(
                f"The policy's action in row {row} of {len(actions)} is not finite: {actions[row].tolist()}. "
                "Look at what it does with this observation."
            )


def as_policy(policy: Any, action_size: int) -> AnyPolicy:
    """Any kind of policy as a `BasePolicy`.

    - with `act` and `context`: already one, returned as it is;
    - with `predict(obs, deterministic=True)`: Stable-Baselines3, or anything that predicts;
    - with `act(obs)`, or callable: a memoryless function, see `CallablePolicy`.

    Raises:
        UserError: none of these, or a policy for another number of actions.
    """
    if isinstance(policy, type):
        raise UserError(f"{policy.__name__} is a class: give a policy made from it.")
    act = getattr(policy, "act", None)
    if callable(act) and hasattr(policy, "context"):
        theirs = getattr(policy, "action_size", action_size)
        if theirs != action_size:
            raise UserError(
                f"The policy answers with {theirs} actions, {action_size} are needed: is it another task's?"
            )
        return policy
    predict = getattr(policy, "predict", None)
    if callable(predict):
        chosen = {"deterministic": True} if _takes(predict, "deterministic") else {}
        return CallablePolicy(lambda obs: _action_of(predict(obs, **chosen)), action_size, arrays="numpy")
    if callable(act):
        return CallablePolicy(lambda obs: _action_of(act(obs)), action_size)
    if callable(policy):
        return CallablePolicy(policy, action_size)
    raise UserError(
        f"A {type(policy).__name__} is not a policy: give a function from observations to actions, or an "
        "object with `act(window)` and `context`, with `act(obs)`, or with `predict(obs)`."
    )


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.name == name or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _action_of(answer: Any) -> Any:
    """Stable-Baselines3 answers with (action, state)."""
    return answer[0] if isinstance(answer, tuple) else answer
