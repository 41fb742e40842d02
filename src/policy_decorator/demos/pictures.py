"""What cameras saw during demonstrations, beside the state: names, number formats, what is refused.

As environments show it (`envs.task.Images`): rgb (3 k, H, W) uint8 of k cameras one after the other, depth (k, H, W)
int16 in millimetres, 0 where nothing is.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from policy_decorator.envs.task import Images
from policy_decorator.errors import UserError

KINDS: dict[str, np.dtype] = {"rgb": np.dtype(np.uint8), "depth": np.dtype(np.int16)}
"""Name -> number format of its entries."""

Pictures = Mapping[str, np.ndarray]
"""Name -> (N, C, H, W), row t seen before action t; empty where there are none."""

REMEDY = {
    "rgb": "Colours are uint8 from 0 to 255: take numpy.round(255 * rgb).astype(numpy.uint8) of what is in [0, 1].",
    "depth": "Depth is int16 in millimetres: take numpy.round(1000 * metres).astype(numpy.int16); of ManiSkill 2's "
    "uint16, metres = depth / 1024.",
}
NEAREST_MM = 30
"""No camera of a task stands as near as this to all that it sees in all demonstrations: another unit."""


def check_form(pictures: Pictures, rows: int) -> None:
    """Raises UserError: unknown names, another number format, not one picture (C, H, W) for each of `rows`."""
    for name, stored in pictures.items():
        if name not in KINDS:
            raise UserError(f"Pictures are named {' and '.join(KINDS)}, not {name!r}: rename them or leave them out.")
        if stored.dtype != KINDS[name]:
            raise UserError(f"{name} is {stored.dtype}, not {KINDS[name]}. {REMEDY[name]}")
        if stored.ndim != 4 or len(stored) != rows:
            raise UserError(
                f"{name} has shape {stored.shape}, but there are {rows} steps: one picture (C, H, W) belongs to each."
            )
    if "depth" in pictures and "rgb" not in pictures:
        raise UserError("There is depth without rgb: record both.")


def check_shown(pictures: Pictures, shown: Images | None, task: str) -> None:
    """Raises UserError unless the pictures are what `shown` says the task's cameras see, None being nothing."""
    wanted = shown.shapes if shown else {}
    if missing := sorted(set(wanted) - set(pictures)):
        raise UserError(
            f"{task} shows pictures, and these demonstrations have no {' and no '.join(missing)}: record them "
            f"(pidec demos {task}), or replay those of the state with their seeds (pidec demos {task} --from-replay)."
        )
    if more := sorted(set(pictures) - set(wanted)):
        raise UserError(f"These demonstrations have {' and '.join(more)}, which {task} does not show: leave it out.")
    for name, shape in wanted.items():
        if pictures[name].shape[1:] != shape:
            raise UserError(
                f"{name} of these demonstrations is {pictures[name].shape[1:]}, {task} shows {shape} (channels, "
                "height, width). Record them again."
            )
    _check_units(pictures)


def _check_units(pictures: Pictures) -> None:
    if "rgb" in pictures and pictures["rgb"].max() <= 1:
        raise UserError(f"No entry of rgb is larger than 1. {REMEDY['rgb']}")
    if "depth" in pictures:
        low, high = int(pictures["depth"].min()), int(pictures["depth"].max())
        if low < 0 or high <= NEAREST_MM:
            raise UserError(f"depth goes from {low} to {high}, which are no millimetres. {REMEDY['depth']}")


def end_to_end(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Pictures of episodes as one, taken out of `parts` one by one: together they may fill most of the memory.

    Raises UserError where episodes differ in what they show.
    """
    shapes = {tuple(sorted((name, x.dtype.str, x.shape[1:]) for name, x in part.items())) for part in parts}
    if len(shapes) > 1:
        raise UserError("The episodes differ in their pictures: all must show the same, in one size.")
    joined = {}
    for name in list(parts[0]):
        rows = sum(len(part[name]) for part in parts)
        joined[name] = np.empty((rows, *parts[0][name].shape[1:]), parts[0][name].dtype)
        end = 0
        for part in parts:
            taken = part.pop(name)
            joined[name][end : end + len(taken)] = taken
            end += len(taken)
    return joined
