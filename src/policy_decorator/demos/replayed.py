"""Demonstrations of the state, played again from their seeds before the cameras.

So experts and planners, which act on the state, and demonstrations that are there already serve tasks that show
pictures. Simulators begin alike for the same seed; what does not succeed again, at the same step, is left out.
"""

from typing import Any

import gymnasium as gym
import numpy as np

from policy_decorator.demos.dataset import Demonstrations, check
from policy_decorator.demos.episode import Episode, episode_of, gather
from policy_decorator.demos.record import Progress
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError


def with_pictures(demos: Demonstrations, task: Task, progress: Progress | None = None) -> Demonstrations:
    """`demos` of `task.flat` as demonstrations of `task`; `details["not_replayed"]` counts what was left out.

    Raises UserError: a task without pictures, demonstrations of another task or without seeds, none succeeds again.
    """
    if task.flat is None:
        raise UserError(f"{task.name} shows no pictures. Name one that does: {task.name}:rgb or {task.name}:rgbd")
    check(demos, task.flat)
    if (demos.seeds < 0).any():
        raise UserError(
            f"The seeds of these demonstrations ({demos.source}) are unknown, so that they cannot be played again. "
            f"Demonstrations that are recorded here have them: pidec demos {task.name}"
        )
    kept: list[Episode] = []
    env = task.make_env(None)
    try:
        for k, (start, length) in enumerate(zip(demos.starts, demos.lengths, strict=True)):
            rows = slice(start, start + length)
            episode = _again(env, int(demos.seeds[k]), demos.actions[rows])
            if np.array_equal(episode.success, demos.success[rows]):
                kept.append(episode)
            if progress is not None:
                progress(k + 1, demos.episodes)
    finally:
        env.close()
    if not kept:
        raise UserError(
            f"None of these demonstrations succeeds again in {task.name}: they are of another version of the task, or "
            "something else than the seed decided how they began. Record them anew."
        )
    details = {**demos.details, "not_replayed": demos.episodes - len(kept)}
    return gather(task.name, kept, demos.source, details)


def _again(env: gym.Env[Any, Any], seed: int, actions: np.ndarray) -> Episode:
    """What is seen, step by step, and whether that succeeds; actions (L, Da)."""
    frames, success = [], []
    frame, _ = env.reset(seed=seed)
    for action in actions:
        frames.append({name: np.array(x) for name, x in frame.items()})
        frame, _, _, _, info = env.step(action)
        success.append(bool(info["success"]))
    return episode_of(frames, list(actions), success, seed)
