"""What a task is: one entry per task, with its sizes, its time limit and its meaning of success."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from policy_decorator.types import VectorEnv

Expert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Task:
    """A simulated task with a sparse success signal.

    The environment that `make_env` returns has a flat float observation (Do,), an action (Da,) in [-1, 1], a layout
    that follows `reset(seed=...)`, and `info["success"]` at every step. It needs no time limit, reward or termination
    of its own: `envs.vector` cuts episodes at `max_steps` and at the first success (but see `ends_at_success`), and
    success is the reward.
    """

    name: str
    obs_size: int
    action_size: int
    max_steps: int
    """Time limit of an episode, in environment steps."""
    control_hz: float
    success: str
    """What counts as success, in words."""
    demos: str
    """How demonstrations are had."""
    make_env: Callable[[str | None], gym.Env[Any, Any]]
    """`None` or "rgb_array" -> one environment."""
    make_expert: Callable[[], Expert] | None = None
    """A scripted expert, (Do,) -> (Da,); a new one for every episode."""
    make_native: Callable[..., VectorEnv] | None = None
    """Set where the simulator itself is vectorised: (n, max_steps, device) -> environments."""
    ends_at_success: bool = True
    """False: every episode lasts `max_steps` steps, and has succeeded if it ever did (the episodes of DPPO)."""
    renders: bool = True
    """Whether `make_env("rgb_array")` draws."""
    points: dict[str, tuple[int, int, int]] | None = None
    """Where named points (gripper, object, goal) stand in the observation: drawn where nothing can be rendered."""
