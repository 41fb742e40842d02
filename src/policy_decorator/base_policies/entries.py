"""An observation as the named entries that somebody else's policy wants.

A part of the flat observation is a slice or a list of indices, of an observation with pictures also the name of an
entry of it, as `Entry("rgb")`. Anything else is handed on as it is: a prompt. As text, in an address, the same is
`0:7`, `:`, `@rgb` and `open the door`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from policy_decorator.errors import UserError

Keys = Mapping[str, Any] | Callable[[Tensor], Mapping[str, Any]]
"""Name -> part, or a function of the newest frame (..., Do)."""


class Entry(NamedTuple):
    """A named part of an observation with pictures."""

    name: str


def entries_of(frame: Tensor, keys: Keys) -> dict[str, Any]:
    """The newest frame, (Do,) or (B, Do), by the names of `keys`. Raises UserError for a part that is not there."""
    if callable(keys):
        return dict(keys(frame))
    return {name: _part(frame, name, part) for name, part in keys.items()}


def _part(frame: Tensor, name: str, part: Any) -> Any:
    pictures, parts = not isinstance(frame, Tensor), cast(Any, frame)
    if isinstance(part, Entry):
        known = sorted(parts.keys()) if pictures else []
        if part.name not in known:
            raise UserError(f"{name} is to be {part.name!r}, but the observation has {', '.join(known) or 'no names'}.")
        return parts[part.name]
    if not isinstance(part, slice) and (isinstance(part, str) or not isinstance(part, Sequence)):
        return part
    flat: Tensor = parts["state"] if pictures else frame
    try:
        taken = flat[..., part]
    except IndexError as error:
        raise UserError(f"{name} cannot be taken from an observation of size {flat.shape[-1]}: {error}.") from None
    wanted = part.stop if isinstance(part, slice) else None
    if taken.shape[-1] == 0 or (wanted is not None and wanted > flat.shape[-1]):
        raise UserError(f"{name} is to be {part}, but the observation has the size {flat.shape[-1]}.")
    return taken


PER_UNIT = {torch.uint8: 255, torch.int16: 1000}
"""Number format of pictures -> what is 1 where they are real numbers: white, and a metre in millimetres."""


def scaled(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures for policies that are used to have them scaled before: float32, rgb in [0, 1], depth in metres."""

    def real(value: Any) -> Any:
        pixels = torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "ui" else value
        if not isinstance(pixels, Tensor) or pixels.dtype not in PER_UNIT:
            return value
        return pixels.to(torch.float32) / PER_UNIT[pixels.dtype]

    return {name: real(value) for name, value in entries.items()}


def part_of_text(text: str) -> Any:
    """`0:7` -> a slice, `@rgb` -> an entry, anything else is text."""
    if found := re.fullmatch(r"(-?\d*):(-?\d*)", text):
        return slice(*(int(end) if end else None for end in found.groups()))
    return Entry(text[1:]) if text.startswith("@") else text


def to_all(sizes: Mapping[str, int], keys: Keys | None, obs_size: int | None, whose: str) -> Keys:
    """`keys`, or for a policy of one entry all of the observation. Raises UserError where that would be a guess."""
    if keys is not None:
        if not callable(keys) and (missing := sorted(set(sizes) - set(keys))):
            raise UserError(f"keys has no {', '.join(missing)}, which {whose} observes.")
        return keys
    if len(sizes) == 1 and obs_size in (None, *sizes.values()):
        return dict.fromkeys(sizes, slice(None))
    listed = ", ".join(f"{name} ({size})" for name, size in sizes.items())
    name = next(iter(sizes), "state")
    raise UserError(
        f"{whose} observes {listed or 'nothing by name'}: say which part of the observation is which, as "
        f'keys={{"{name}": slice(0, {sizes.get(name, 7)}), ...}}, or give a function from observations to such entries.'
    )
