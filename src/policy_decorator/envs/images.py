"""Observations with pictures: of MuJoCo's environments, and in batches, where every frame has a number."""

from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_decorator.envs.task import image_space
from policy_decorator.errors import UserError


class SeenByCamera(gym.Wrapper[Any, Any, Any, Any]):
    """Observes `state`, the first `state_size` entries of the flat observation, and `rgb` (3, H, W) as drawn.

    `env` draws with `render()`, at the size that is wanted; a picture is drawn at every step.
    """

    def __init__(self, env: gym.Env[Any, Any], state_size: int, height: int, width: int) -> None:
        super().__init__(env)
        self.state_size = state_size
        self.observation_space = image_space(state_size, 1, height, width, depth=False)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._seen(obs), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(obs), float(reward), terminated, truncated, info

    def _seen(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        picture: Any = self.env.render()  # (H, W, 3) uint8
        return {"state": obs[: self.state_size].copy(), "rgb": np.ascontiguousarray(picture.transpose(2, 0, 1))}


def together(parts: dict[str, Tensor], ndim: int) -> Tensor:
    """Tensors that agree in their first `ndim` sizes as one TensorDict, which stands where a Tensor is asked for."""
    from tensordict import TensorDict  # takes a second to import

    state = parts["state"]
    return cast(Tensor, TensorDict(parts, batch_size=state.shape[:ndim], device=state.device))


FORMATS = {"rgb": torch.uint8, "depth": torch.int16}
"""Number formats of pictures; depth is in millimetres."""


def frames_of(obs: Any, state: Tensor, shapes: Mapping[str, tuple[int, ...]], task: str) -> Tensor:
    """`state` (*, Do) with the pictures of `obs` (*, C, H, W), numpy or torch, as a TensorDict (*).

    Raises UserError: no mapping, pictures missing, in another number format or of other sizes.
    """
    missing = sorted(shapes) if not hasattr(obs, "keys") else sorted(set(shapes) - set(obs.keys()))
    if missing:
        raise UserError(f"{task} shows pictures: an observation is a mapping of state, {', '.join(shapes)}.")
    parts = {"state": state}
    for name, shape in shapes.items():
        picture, wanted = torch.as_tensor(obs[name], device=state.device), (*state.shape[:-1], *shape)
        if picture.dtype != FORMATS[name] or picture.shape != wanted:
            raise UserError(
                f"{name} of {task} is {FORMATS[name]} {wanted}, got {picture.dtype} {tuple(picture.shape)}: give it as "
                "the environment has it."
            )
        parts[name] = picture
    return together(parts, ndim=state.ndim - 1)


class FrameNumbers:
    """Gives every frame of B environments a number of its own, by which replay stores its pictures once."""

    def __init__(self, n: int) -> None:
        self.numbers, self.next = torch.full((n,), -1), 0

    def __call__(self, window: Tensor, new: Tensor) -> Tensor:
        """`window` (B, To) with the number `frame` of its newest frame; `new` (B,) bool on the CPU: where it is new."""
        count = int(new.sum())
        self.numbers = self.numbers.masked_scatter(new, torch.arange(self.next, self.next + count))
        self.next += count
        known: Any = window
        return known.copy().set("frame", self.numbers.to(known.device)[:, None].expand(known.batch_size))

    def state(self) -> dict[str, Tensor]:
        return {"frame_numbers": self.numbers, "next_frame": torch.tensor(self.next)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.numbers, self.next = state["frame_numbers"].cpu(), int(state["next_frame"])
