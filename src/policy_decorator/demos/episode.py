"""Single episodes, and how readers and recorders lay them end to end as `Demonstrations`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.pictures import KINDS, end_to_end
from policy_decorator.errors import UserError


class Episode(NamedTuple):
    """One demonstration of L steps, before it joins the others."""

    observations: np.ndarray  # (L, Do)
    actions: np.ndarray  # (L, Da)
    success: np.ndarray  # (L,) bool
    seed: int = -1
    pictures: dict[str, np.ndarray] | None = None  # (L, C, H, W) each


def episode_of(frames: Sequence[Any], actions: Sequence[np.ndarray], success: Sequence[bool], seed: int) -> Episode:
    """From single observations, (Do,) or dicts of a state and pictures."""
    steps = np.stack(actions), np.array(success), seed
    if not isinstance(frames[0], dict):
        return Episode(np.stack(frames), *steps)
    pictures = {name: np.stack([frame[name] for frame in frames]) for name in KINDS if name in frames[0]}
    return Episode(np.stack([frame["state"] for frame in frames]), *steps, pictures)


def gather(task: str, episodes: Sequence[Episode], source: str, details: dict[str, Any]) -> Demonstrations:
    """Lay episodes end to end, clipping actions to [-1, 1] as the environments do.

    How many entries were clipped is added to `details["clipped_entries"]`; infinities are left to
    `dataset.check`. Pictures are taken out of the episodes, so that they are in memory once. Raises UserError if
    there is no episode or their shapes do not fit together.
    """
    if not episodes:
        raise UserError(f"{source} holds no episodes of {task}. Record or choose another source.")
    try:
        observations = np.concatenate([episode.observations for episode in episodes])  # (N, Do)
        actions = np.concatenate([episode.actions for episode in episodes])  # (N, Da)
        success = np.concatenate([episode.success for episode in episodes])  # (N,)
    except ValueError as error:
        raise UserError(f"The episodes of {source} differ in shape ({error}). They must be of one task.") from error
    outside = np.isfinite(actions) & (np.abs(actions) > 1)
    clipped = int(details.get("clipped_entries", 0)) + int(outside.sum())
    return Demonstrations(
        task=task,
        observations=observations.astype(np.float32),
        actions=np.where(outside, np.sign(actions), actions).astype(np.float32),
        success=success.astype(bool),
        lengths=np.array([len(episode.actions) for episode in episodes], dtype=np.int64),
        seeds=np.array([episode.seed for episode in episodes], dtype=np.int64),
        source=source,
        details={**details, "clipped_entries": clipped},
        pictures=end_to_end([{} if episode.pictures is None else episode.pictures for episode in episodes]),
    )
