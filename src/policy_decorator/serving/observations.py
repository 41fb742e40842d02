"""What clients send as observations, as a served policy looks at them: tensors, or with pictures TensorDicts."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from policy_decorator.errors import UserError

Shapes = Mapping[str, tuple[int, int, int]]
"""(C, H, W) of every kind of picture, by its name: rgb, depth."""
FORMATS = {"rgb": np.uint8, "depth": np.int16}
"""Number formats of pictures; depth is in millimetres."""


class Observations:
    """`obs_size` numbers, and beside them pictures of `shapes` (C, H, W), if any.

    Of an openpi client, `entry` names what holds the numbers; None: it is the only array of that size.
    """

    def __init__(self, obs_size: int, shapes: Shapes, entry: str | None, device: torch.device) -> None:
        self.obs_size, self.shapes, self.entry, self.device = obs_size, shapes, entry, device

    def windows(self, given: Any) -> Tensor:
        """Of this package's client, (K, To, Do) or a map of such -> the same here. Raises UserError."""
        if not isinstance(given, dict):
            if self.shapes:
                raise UserError(f"This policy looks at pictures: windows are a map of state, {', '.join(self.shapes)}.")
            return self._numbers(given, 3)
        state = self._numbers(given.get("state"), 3)
        for name, shape in self.shapes.items():
            if not _fits(given.get(name), name, (*state.shape[:2], *shape)):
                raise UserError(f"Windows have to have {name}, {_form(name, ('K', 'To', *shape))}.")
        pictures = {name: torch.from_numpy(x).to(self.device) for name, x in given.items() if name != "state"}
        return _together({"state": state, **pictures}, state)

    def frame(self, message: Mapping[str, Any]) -> Tensor:
        """One observation of an openpi client, (Do,), or with pictures a TensorDict. Raises UserError."""
        arrays = {name: x for name, x in message.items() if isinstance(x, np.ndarray)}
        named = f"in {self.entry!r}" if self.entry else "in exactly one entry"
        candidates = {self.entry: arrays.get(self.entry)} if self.entry is not None else arrays
        fitting = [x for x in candidates.values() if x is not None and x.shape == (self.obs_size,)]
        if len(fitting) != 1:
            raise UserError(f"An observation has to have an array of shape ({self.obs_size},) {named}.")
        state = self._numbers(fitting[0].astype(np.float32), 1)
        if not self.shapes:
            return state
        return _together({"state": state, **{name: self._picture(name, arrays) for name in self.shapes}}, state)

    def _picture(self, name: str, arrays: Mapping[str, np.ndarray]) -> Tensor:
        """(C, H, W), from the only array of its form, channels first or last, or of several the one of its name."""
        channels, height, width = self.shapes[name]
        first, last = (channels, height, width), (height, width, channels)
        found = {key: x for key, x in arrays.items() if _fits(x, name, first) or _fits(x, name, last)}
        if len(found) > 1:
            found = {key: x for key, x in found.items() if key.rpartition("/")[2] == name}
        if len(found) != 1:
            raise UserError(
                f"An observation has to have {name} in exactly one entry, {_form(name, first)} or {_form(name, last)}; "
                f"of several, in the one called {name}."
            )
        (picture,) = found.values()
        channels_first = picture if picture.shape == first else picture.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(channels_first)).to(self.device)

    def _numbers(self, given: Any, ndim: int) -> Tensor:
        if not isinstance(given, np.ndarray) or given.ndim != ndim or given.shape[-1] != self.obs_size:
            raise UserError(f"Observations have the size {self.obs_size}, got shape {np.shape(given)}.")
        seen = torch.from_numpy(given).to(self.device)
        if not seen.isfinite().all():
            raise UserError("The observation is not finite.")
        return seen


def _fits(given: Any, name: str, shape: tuple[int, ...]) -> bool:
    return isinstance(given, np.ndarray) and given.dtype == FORMATS[name] and given.shape == shape


def _form(name: str, shape: tuple[Any, ...]) -> str:
    return f"{np.dtype(FORMATS[name])} ({', '.join(map(str, shape))})"


def _together(parts: dict[str, Tensor], state: Tensor) -> Tensor:
    from tensordict import TensorDict  # takes a second to import

    return cast(Tensor, TensorDict(parts, batch_size=state.shape[:-1], device=state.device))
