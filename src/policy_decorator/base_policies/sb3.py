"""Models of Stable-Baselines3 and sb3-contrib: `predict(obs, state, episode_start, deterministic)`.

One of several inputs (MultiInputPolicy) gets the vector that a task shows taken apart, in the order of its own space.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_decorator.base_policies.answers import WrongShape, checked, shaped
from policy_decorator.base_policies.external import CallablePolicy
from policy_decorator.errors import UserError
from policy_decorator.memory import RowMemory

STATE = "state_{}"


class RecurrentModel:
    """A `StatefulPolicy` around a recurrent model, such as sb3-contrib's RecurrentPPO.

    `state` is what its `predict` answers with for one row: arrays (layers, 1, ...). All rows are asked at once, each
    with its own state; those whose episode begins with zeros and `episode_start`.
    """

    context = chunk = 1

    def __init__(self, model: Any, action_size: int, state: tuple[np.ndarray, ...]) -> None:
        self.model, self.action_size, self.queries = model, action_size, 0
        self.behind = model
        self._empty = state
        self._zeros = [torch.zeros(x[:, 0].shape) for x in state]
        self._memory = RowMemory()

    def session(self) -> "RecurrentModel":
        """The same model with an empty memory of its own."""
        return RecurrentModel(self.model, self.action_size, self._empty)

    def reset(self, rows: Tensor) -> None:
        """Episodes begin in `rows` (K,)."""
        self._memory.reset(rows)

    def act(self, window: Tensor, rows: Tensor) -> Tensor:
        """(K, To, Do), (K,) -> (K, 1, Da) in [-1, 1]. Raises UserError for answers that are none."""
        obs, memory = window[:, -1], self._memory
        self.queries += len(obs)
        before = [memory.read(STATE.format(i), rows, zero) for i, zero in enumerate(self._zeros)]
        states = [x.transpose(0, 1).numpy() for x in before]  # (layers, K, ...)
        begins = memory.read("going", rows, torch.zeros(())).numpy() == 0
        given = inputs(self.model, obs.cpu().numpy().copy())
        answer, after = self.model.predict(given, state=tuple(states), episode_start=begins, deterministic=True)
        for i, x in enumerate(after):
            memory.write(STATE.format(i), rows, torch.from_numpy(np.array(x)).transpose(0, 1))
        memory.write("going", rows, torch.ones(len(obs)))
        try:
            actions = shaped(answer, (len(obs),), None, self.action_size)
        except WrongShape as error:
            raise UserError(f"The model {error}") from None
        return checked(actions.to(device=obs.device, dtype=torch.float32))

    def state(self) -> dict[str, Tensor]:
        return self._memory.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self._memory.restore(state)


def from_model(model: Any, action_size: int, predict: Callable[[Any], Any]) -> CallablePolicy | RecurrentModel:
    """A model as a base policy. Raises UserError: other actions than the task's, an unknown kind of state."""
    _check_actions(model, action_size)
    if (size := _vector_size(getattr(model, "observation_space", None))) is not None:
        probe, begins = inputs(model, np.zeros((1, size), dtype=np.float32)), np.ones(1, dtype=bool)
        _, state = model.predict(probe, state=None, episode_start=begins, deterministic=True)
        if state is not None:
            if not isinstance(state, tuple) or any(np.ndim(x) < 2 or np.shape(x)[1] != 1 for x in state):
                raise UserError(
                    "The model's state is no tuple of arrays (layers, rows, ...): wrap it as a StatefulPolicy."
                )
            return RecurrentModel(model, action_size, tuple(np.asarray(x) for x in state))
    return CallablePolicy(lambda obs: predict(inputs(model, obs)), action_size, arrays="numpy", behind=model)


def inputs(model: Any, obs: Any) -> Any:
    """What the model observes, of observations (B, Do) or (Do,); what is taken apart already is left as it is.

    Raises UserError where its parts are not as large together.
    """
    space = getattr(model, "observation_space", None)
    size = _vector_size(space)
    if not isinstance(space, gym.spaces.Dict) or size is None or not isinstance(obs, np.ndarray):
        return obs
    if obs.shape[-1] != size:
        raise UserError(f"The model observes {size} numbers ({', '.join(space)}), and is shown {obs.shape[-1]}.")
    ends = np.cumsum([gym.spaces.flatdim(part) for part in space.values()])
    return dict(zip(space, np.split(obs, ends[:-1], axis=-1), strict=True))


def _vector_size(space: Any) -> int | None:
    """Numbers in its observations, where those are vectors."""
    parts = space.values() if isinstance(space, gym.spaces.Dict) else [space]
    vectors = all(isinstance(part, gym.spaces.Box) and len(part.shape) == 1 for part in parts)
    return gym.spaces.flatdim(space) if vectors else None


def _check_actions(model: Any, action_size: int) -> None:
    space = getattr(model, "action_space", None)
    low, high = getattr(space, "low", None), getattr(space, "high", None)
    if low is None or high is None:
        return
    if np.size(low) != action_size:
        raise UserError(
            f"The model answers with {np.size(low)} actions, {action_size} are needed: is it another task's?"
        )
    limits = np.concatenate([np.ravel(low), np.ravel(high)])
    if np.isfinite(limits).all() and not np.allclose(np.abs(limits), 1.0):
        raise UserError(
            f"The model acts between {np.min(low):g} and {np.max(high):g}, tasks here between -1 and 1: give a "
            "function that rescales what it predicts."
        )
