"""Anyone's policy as a base policy: a function, a network, a scripted expert, a Stable-Baselines3 model.

act(window (B, To, Do)) = fn(obs (B, Do)) or, row by row, fn(obs (Do,));  every answer is checked

Policies with a memory, files and servers have files of their own beside this one.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from policy_decorator.base_policies.answers import WrongShape, check_numbers, checked, device_of, shaped
from policy_decorator.base_policies.networks import check_evaluating, network_of
from policy_decorator.errors import UserError
from policy_decorator.memory import AnyPolicy

Arrays = Literal["torch", "numpy"]


@dataclass(frozen=True)
class Style:
    """How a function wants to be called."""

    arrays: Arrays
    batched: bool

    def __str__(self) -> str:
        return f"{'a batch (B, Do)' if self.batched else 'one row (Do,)'} as a {self.arrays} array"


class CallablePolicy:
    """A memoryless function of the last observations as a base policy.

    `fn` takes a batch (B, Do) or one observation (Do,), as torch tensor or numpy float32 array, and answers
    with as many actions of size `action_size`, or chunks of them, (B, T, Da) or (T, Da). How it wants to be called is
    found out at the first decision, by a few trial calls; `batched` and `arrays` settle it beforehand. The function
    gets a copy of the observations, is called without gradients, and none of its parameters is touched; a network gets
    them on its own device. Actions are clamped to [-1, 1], as the environment would do with them. Of a task that shows
    pictures an observation is a dict of `state` (B, Do), `rgb` (B, C, H, W) and so on, or of one row of each.

    Args:
        chunk: Ta, how many of the T actions are executed before it is asked again; None: it answers with one.
        context: To; above 1 it takes windows (B, To, Do) or (To, Do) of that many frames, from old to new.
        behind: what `fn` asks, where it is not the network or its method itself.
        device: where it wants tensors; None: where a network's parameters are, or else where the observations are.

    Raises:
        UserError: a network in training mode whose answers would be random or change it; no way of calling it gives
            actions of the right shape, or an action is not finite.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        action_size: int,
        *,
        batched: bool | None = None,
        arrays: Arrays | None = None,
        chunk: int | None = None,
        context: int = 1,
        device: torch.device | None = None,
        behind: Any = None,
    ) -> None:
        if not callable(fn) or isinstance(fn, type):
            raise UserError(f"A policy must be a function of the observation, got {fn!r}.")
        if min(context, 1 if chunk is None else chunk) < 1:
            raise UserError(f"chunk and context of a policy must be at least 1, got {chunk} and {context}.")
        self.fn, self.action_size, self.context = fn, action_size, context
        self.behind = fn if behind is None else behind
        check_evaluating(network_of(self))
        self.device = device or device_of(fn)
        self._chunk = chunk
        kinds: list[Arrays] = [arrays] if arrays else ["torch"] if isinstance(fn, nn.Module) else ["torch", "numpy"]
        ways = [True, False] if batched is None else [batched]
        self._candidates = [Style(arrays, way) for way in ways for arrays in kinds]
        self._style: Style | None = None

    @property
    def chunk(self) -> int:
        """Ta: actions it answers with."""
        return self._chunk or 1

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da) in [-1, 1], float32 on the window's device."""
        seen = window[:, -self.context :] if self.context > 1 else window[:, -1]  # (B, To, Do) or (B, Do)
        try:
            actions = self._call(seen, self.style(seen))
        except WrongShape as error:
            raise UserError(f"The policy {error}") from None
        return checked(actions)

    def style(self, seen: Tensor) -> Style:
        """How it wants to be called, found out on observations (B, Do) or (B, To, Do) the first time it is asked."""
        self._style = self._style or self._find_style(seen)
        return self._style

    def _find_style(self, seen: Tensor) -> Style:
        probe = seen[:2]
        if len(probe) < 2 or torch.equal(_state(probe)[0], _state(probe)[1]):
            probe = seen[[0, 0]]  # two rows, near enough to be possible observations
            _state(probe)[1] += 0.01
        tried: list[str] = []
        for style in self._candidates:
            try:
                answer = self._call(probe, style)
                if style.batched and self._mixes_rows(probe, answer, style):
                    raise WrongShape("does not answer for each row on its own.")
                return style
            except Exception as error:  # whatever a foreign function raises means that it is not called like this
                reason = "it " if isinstance(error, WrongShape) else f"{type(error).__name__}: "
                tried.append(f"\n  with {style}: {reason}{error}")
        raise UserError(
            f"The policy cannot be asked for {self.action_size} actions. Tried:{''.join(tried)}\n"
            "Give a function from observations (B, Do) or (Do,) to actions (B, Da) or (Da,)."
        )

    def _mixes_rows(self, probe: Tensor, answer: Tensor, style: Style) -> bool:
        """Whether it only seems to take batches, as `lambda obs: obs - obs.mean()` does."""
        again = self._call(probe, style)
        if not torch.equal(again, answer):
            return False  # it is random (or not finite): its answers cannot be compared
        alone = self._call(probe[:1], style)
        return not torch.allclose(alone, answer[:1], rtol=1e-3, atol=1e-4)

    def _call(self, seen: Tensor, style: Style) -> Tensor:
        """(B, Do) or (B, To, Do) -> (B, Ta, Da)."""
        if style.batched:
            return self._ask(seen, style, (len(seen),))
        return torch.stack([self._ask(row, style, ()) for row in seen])

    def _ask(self, seen: Tensor, style: Style, rows: tuple[int, ...]) -> Tensor:
        answer = self.fn(_given(seen, self.device or seen.device, style.arrays))
        return shaped(answer, rows, self._chunk, self.action_size).to(device=seen.device, dtype=torch.float32)


def _state(seen: Tensor) -> Tensor:
    """The numbers of observations, where there are pictures beside them."""
    return seen if isinstance(seen, Tensor) else seen["state"]


def _given(seen: Tensor, device: torch.device, arrays: Arrays) -> Any:
    """A copy of observations, in the form in which a function wants them."""
    if not isinstance(seen, Tensor):
        return {name: _given(part, device, arrays) for name, part in seen.items() if name != "frame"}
    copied = seen.to(device, copy=True)
    return copied if arrays == "torch" else copied.cpu().numpy()


def as_policy(policy: Any, action_size: int) -> AnyPolicy:
    """Any kind of policy as a `BasePolicy`, or as a `StatefulPolicy` where it has a memory.

    - with `act` and `context`: already one, returned as it is;
    - LeRobot's (`select_action` and `reset`) and robomimic's (`start_episode`), of one observation; see `from_lerobot`
      and `from_robomimic` for those of several;
    - with `predict(obs, deterministic=True)`: Stable-Baselines3, recurrent too, or anything that predicts;
    - with `reset()`, and `act(obs)` or callable: one that remembers an episode, see `Copies`;
    - with `act(obs)`, or callable: a memoryless function, see `CallablePolicy`.

    Raises:
        UserError: none of these, a policy for another number of actions, one whose numbers are not finite, or a network
            in training mode whose answers would be random or change it.
    """
    if isinstance(policy, type):
        raise UserError(f"{policy.__name__} is a class: give a policy made from it.")
    if isinstance(policy, nn.Module):
        check_numbers(policy)
    act = getattr(policy, "act", None)
    if callable(act) and hasattr(policy, "context"):
        check_evaluating(network_of(policy))
        theirs = getattr(policy, "action_size", action_size)
        if theirs != action_size:
            raise UserError(
                f"The policy answers with {theirs} actions, {action_size} are needed: is it another task's?"
            )
        return cast(AnyPolicy, policy)
    if (asked := _of_a_library(policy, action_size)) is not None:
        return asked
    if callable(getattr(policy, "reset", None)) and (callable(act) or callable(policy)):
        from policy_decorator.base_policies.copies import Copies  # uses this file

        return Copies(policy, action_size)
    if callable(act):
        return CallablePolicy(lambda obs: action_of(act(obs)), action_size, behind=act)
    if callable(policy):
        return CallablePolicy(policy, action_size)
    raise UserError(
        f"A {type(policy).__name__} is not a policy: give a function from observations to actions, or an "
        "object with `act(window)` and `context`, with `act(obs)`, or with `predict(obs)`."
    )


def _of_a_library(policy: Any, action_size: int) -> AnyPolicy | None:
    from policy_decorator.base_policies import lerobot, robomimic, sb3  # each of them uses this file

    if lerobot.is_lerobot(policy):
        return lerobot.from_lerobot(policy, action_size)
    if robomimic.is_robomimic(policy):
        return robomimic.from_robomimic(policy, action_size)
    predict = getattr(policy, "predict", None)
    if callable(predict):
        chosen = {"deterministic": True} if _takes(predict, "deterministic") else {}
        return sb3.from_model(policy, action_size, lambda obs: action_of(predict(obs, **chosen)))
    return None


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.name == name or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def action_of(answer: Any) -> Any:
    """Stable-Baselines3 answers with (action, state)."""
    return answer[0] if isinstance(answer, tuple) else answer
