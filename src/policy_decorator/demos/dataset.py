"""Demonstrations of one task, in memory and on disk.

On disk: one flat HDF5 file (readable with h5py or `h5dump`), no groups. E episodes, N = sum of their lengths.

    attribute format   "policy_decorator.demonstrations"
    attribute version  1, or 2 with pictures
    attribute task     name of the task
    attribute source   where they come from, in words
    attribute details  JSON object: noise, clipped entries, dropped episodes, ...
    observations       (N, Do) float32, row t is what was seen before action t; no terminal observations
    actions            (N, Da) float32 in [-1, 1], as executed
    success            (N,) bool, whether the task was solved after action t
    lengths            (E,) int64, rows of each episode, in order
    seeds              (E,) int64, reset seed of each episode, -1 where unknown

Of tasks that show images, `observations` are the states beside them, and there are also (chunked by row, gzip)

    rgb                (N, 3 k, H, W) uint8, of k cameras one after the other
    depth              (N, k, H, W) int16 in millimetres, where the task shows it
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from policy_decorator.demos import storage
from policy_decorator.demos.pictures import Pictures, check_form, check_shown
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

ACTION_SLACK = 1e-4  # float32 rounding in other people's files, far below anything a controller notices


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """E episodes laid end to end, N = sum(lengths) rows. UserError if the arrays do not fit together."""

    task: str
    """Name of the task."""
    observations: np.ndarray
    """(N, Do) float32; row t was seen before action t."""
    actions: np.ndarray
    """(N, Da) float32, as executed."""
    success: np.ndarray
    """(N,) bool, success after that action."""
    lengths: np.ndarray
    """(E,) int64, environment steps per episode."""
    seeds: np.ndarray
    """(E,) int64, reset seeds, -1 where unknown."""
    source: str
    """Where they come from, in words."""
    details: dict[str, Any]
    """JSON-able: noise sigma, clipped entries, dropped episodes, whether success is known..."""
    pictures: Pictures = field(default_factory=dict)
    """rgb (N, C, H, W) uint8 and depth (N, C, H, W) int16, of what cameras saw; empty where there were none."""

    def __post_init__(self) -> None:
        rows = int(self.lengths.sum())
        fits = (
            self.observations.ndim == self.actions.ndim == 2
            and self.observations.shape[0] == self.actions.shape[0] == rows
            and self.success.shape == (rows,)
            and self.lengths.ndim == 1
            and self.lengths.shape == self.seeds.shape
            and bool(np.all(self.lengths >= 0))
        )
        if not fits:
            shapes = ", ".join(f"{name} {getattr(self, name).shape}" for name in storage.ARRAYS)
            raise UserError(
                f"These demonstrations do not fit together: lengths add up to {rows} steps, but the arrays "
                f"are {shapes}. Leave out terminal observations, so that every row has its action."
            )
        check_form(self.pictures, rows)

    @property
    def episodes(self) -> int:
        """E."""
        return len(self.lengths)

    @property
    def obs_size(self) -> int:
        """Do."""
        return self.observations.shape[1]

    @property
    def action_size(self) -> int:
        """Da."""
        return self.actions.shape[1]

    @property
    def starts(self) -> np.ndarray:
        """(E,) int64, first row of each episode."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def episode_success(self) -> np.ndarray:
        """(E,) bool, whether any step of the episode was a success."""
        ends = np.concatenate([[0], np.cumsum(self.success)])  # (N + 1,) successes before each row
        return ends[self.starts + self.lengths] > ends[self.starts]

    def frames(self, rows: slice = slice(None)) -> Any:
        """What was seen in these rows: (n, Do), or with pictures a dict of arrays `state`, `rgb`, `depth`."""
        state = self.observations[rows]
        return {"state": state, **{name: x[rows] for name, x in self.pictures.items()}} if self.pictures else state

    def split(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Per episode of L steps: what was seen, as `frames` has it, and actions (L, Da)."""
        for start, length in zip(self.starts, self.lengths, strict=True):
            rows = slice(start, start + length)
            yield self.frames(rows), self.actions[rows]

    def first(self, n: int) -> "Demonstrations":
        """The first n episodes; UserError if there are fewer."""
        if not 1 <= n <= self.episodes:
            raise UserError(
                f"Asked for {n} demonstrations of {self.task}, but there are {self.episodes}. Record more or "
                "ask for less."
            )
        return self._keep(np.arange(self.episodes) < n)

    def successful(self) -> "Demonstrations":
        """Only the episodes that succeed, possibly none."""
        return self._keep(self.episode_success)

    def _keep(self, episodes: np.ndarray) -> "Demonstrations":
        rows = np.repeat(episodes, self.lengths)  # (N,) bool
        return replace(
            self,
            observations=self.observations[rows],
            actions=self.actions[rows],
            success=self.success[rows],
            lengths=self.lengths[episodes],
            seeds=self.seeds[episodes],
            pictures={name: x[rows] for name, x in self.pictures.items()},
        )

    def describe(self) -> dict[str, Any]:
        """What a report says about them: plain JSON-able numbers; None where there is nothing to measure."""
        empty = len(self.actions) == 0
        return {
            "task": self.task,
            "source": self.source,
            "episodes": self.episodes,
            "steps": len(self.actions),
            "mean_length": float(self.lengths.mean()) if self.episodes else None,
            "success_rate": float(self.episode_success.mean()) if self.episodes else None,
            "action_range": None if empty else [float(self.actions.min()), float(self.actions.max())],
            "pictures": {name: list(x.shape[1:]) for name, x in self.pictures.items()},
            "details": self.details,
        }

    def save(self, path: str | Path) -> None:
        """Write the HDF5 file of the module docstring, all or nothing.

        A failure leaves the old file as it was. Raises UserError when the disk is full or the folder cannot
        be written.
        """
        attributes = {"task": self.task, "source": self.source, "details": json.dumps(self.details)}
        arrays = {name: getattr(self, name) for name in storage.ARRAYS}
        storage.write(path, attributes, arrays, self.pictures)

    @classmethod
    def load(cls, path: str | Path) -> "Demonstrations":
        """Read what `save` wrote. UserError: missing, not HDF5, another format or version, damaged."""
        attributes, arrays, pictures = storage.read(path)
        try:
            details = json.loads(attributes["details"])
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged ({error}). Record the demonstrations again.") from error
        task, source = attributes["task"], attributes["source"]
        return cls(task=task, source=source, details=details, pictures=pictures, **arrays)


def joined(parts: Sequence[Demonstrations]) -> Demonstrations:
    """The episodes of all `parts`, in their order; of each its source and details are kept.

    Raises:
        UserError: none, of different tasks, or of other sizes or pictures than the first.
    """
    if not parts:
        raise UserError("There are no demonstrations to join.")
    first = parts[0]
    if len(parts) == 1:
        return first
    for other in parts[1:]:
        if other.task != first.task:
            raise UserError(
                f"Demonstrations of {first.task!r} and of {other.task!r} cannot be joined: give those of one task."
            )
        sizes = [(d.obs_size, d.action_size, {k: x.shape[1:] for k, x in d.pictures.items()}) for d in (first, other)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"Demonstrations of {first.task!r} cannot be joined: they have observations, actions and pictures of "
                f"{sizes[0]} ({first.source}) and {sizes[1]} ({other.source})."
            )
    columns = {name: np.concatenate([getattr(d, name) for d in parts]) for name in storage.ARRAYS}
    pictures = {name: np.concatenate([d.pictures[name] for d in parts]) for name in first.pictures}
    origin = [{"source": d.source, "episodes": d.episodes, "details": d.details} for d in parts]
    source = " and ".join(dict.fromkeys(d.source for d in parts))
    return Demonstrations(first.task, **columns, source=source, details={"joined": origin}, pictures=pictures)


def check(demos: Demonstrations, task: Task) -> None:
    """Refuse, with a UserError, demonstrations that cannot be learned from for this task.

    Those of a task that is neither this one nor its `demos_of`, other sizes, no episodes, an episode without steps,
    entries that are not finite, actions that leave [-1, 1] by more than `ACTION_SLACK`, pictures missing or in excess,
    of another size or unit.
    """
    if demos.task not in (task.name, task.demos_of):
        raise UserError(f"These are demonstrations of {demos.task!r}, not of {task.name!r}. Choose one of the two.")
    if demos.episodes == 0:
        raise UserError(f"There are no demonstrations of {task.name} here ({demos.source}). {task.demos}")
    if not demos.lengths.all():
        empty = int(np.argmin(demos.lengths))
        raise UserError(f"Episode {empty} of the demonstrations of {task.name} has no steps. Leave it out.")
    _check_columns("observation", demos, demos.observations, task.obs_size)
    _check_columns("action", demos, demos.actions, task.action_size)
    reach = float(np.abs(demos.actions).max())
    if reach > 1 + ACTION_SLACK:
        raise UserError(
            f"Actions reach {reach:.4g}, but {task.name} takes actions in [-1, 1]. Clip them with "
            "numpy.clip(actions, -1, 1), as the environment does, or rescale them if they have another unit."
        )
    check_shown(demos.pictures, task.shows, task.name)


def _check_columns(what: str, demos: Demonstrations, rows: np.ndarray, size: int) -> None:
    if rows.shape[1] != size:
        raise UserError(
            f"These demonstrations have {rows.shape[1]} {what} columns, but {demos.task} has {size}. They "
            "come from another version or observation mode of the task: record them again."
        )
    bad = np.argwhere(~np.isfinite(rows))  # (bad entries, 2)
    if len(bad):
        row, column = bad[0]
        episode = int(np.searchsorted(demos.starts, row, side="right")) - 1
        raise UserError(
            f"{len(bad)} {what} entries are not finite; the first is {rows[row, column]} in episode "
            f"{episode}, step {row - demos.starts[episode]}, column {column}. Drop that episode or record it "
            "again."
        )
