"""What a task is: one entry per task, with its sizes, its time limit and its meaning of success."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np

from policy_decorator.errors import lookup
from policy_decorator.types import VectorEnv

Expert = Callable[[np.ndarray], np.ndarray]


def _nothing() -> None:
    """Is missing."""


def installed(*libraries: str, extra: str) -> str | None:
    """None, or how to install those of `libraries` that are missing; nothing is imported."""
    if all(importlib.util.find_spec(library) for library in libraries):
        return None
    return f'pip install "policy-decorator[{extra}]"'


@dataclass(frozen=True)
class Images:
    """What cameras see of a task, beside a state that says nothing of its objects.

    An observation is then a dict: `state` (state_size,) float32, `rgb` (3 k, H, W) uint8 with the k cameras one after
    the other, and with `depth` also `depth` (k, H, W) int16 in millimetres, 0 where nothing is.
    """

    cameras: tuple[str, ...]
    """As the simulator calls them."""
    height: int
    width: int
    """Pixels, of every camera."""
    depth: bool
    state_size: int
    make_env: Callable[[str | None], gym.Env[Any, Any]]
    """`None` or "rgb_array" -> one environment with such observations."""
    make_on_gpu: Callable[..., VectorEnv] | None = None
    """As of the task."""
    make_native: Callable[..., VectorEnv] | None = None
    """As of the task."""

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """(C, H, W) of every kind of picture."""
        k, size = len(self.cameras), (self.height, self.width)
        return {"rgb": (3 * k, *size)} | ({"depth": (k, *size)} if self.depth else {})


def image_space(state_size: int, cameras: int, height: int, width: int, *, depth: bool) -> gym.spaces.Dict:
    """The observation space of environments that show images."""
    state = gym.spaces.Box(-np.inf, np.inf, (state_size,), np.float32)
    rgb = gym.spaces.Box(0, 255, (3 * cameras, height, width), np.uint8)
    parts: dict[str, gym.Space[Any]] = {"state": state, "rgb": rgb}
    if depth:
        parts["depth"] = gym.spaces.Box(0, np.iinfo(np.int16).max, (cameras, height, width), np.int16)
    return gym.spaces.Dict(parts)


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
    make_privileged_expert: Callable[[gym.Env[Any, Any]], Expert] | None = None
    """A scripted expert that also sees the simulator, for tasks whose observation does not tell enough: made for one
    environment of `make_env`, a new one for every episode."""
    make_native: Callable[..., VectorEnv] | None = None
    """Set where the simulator itself is vectorised: (n, max_steps, device) -> environments."""
    make_on_gpu: Callable[..., VectorEnv] | None = None
    """Set where a GPU simulates thousands of environments: (n, max_steps, context, ends_at_success, device)."""
    why_not_on_gpu: Callable[[], str | None] = _nothing
    """With `make_on_gpu`: why that cannot be had in this process, in one line; None where it can."""
    why_not: Callable[[], str | None] = _nothing
    """What is missing on this machine for the task to run, in one line; None where nothing is."""
    demos_of: str | None = None
    """Another task whose demonstrations serve this one too: the same with other objects."""
    ends_at_success: bool = True
    """False: every episode lasts `max_steps` steps, and has succeeded if it ever did (the episodes of DPPO)."""
    renders: bool = True
    """Whether `make_env("rgb_array")` draws."""
    images: Mapping[str, Images] = field(default_factory=dict)
    """What "<name>:rgb" or "<name>:rgbd" shows instead of the state."""
    shows: Images | None = None
    """Set where this is such a task."""
    held_actions: tuple[int, ...] | None = (-1,)
    """What goes on behind a demonstration's end: these entries of its last action (positions of grippers), while 0 in
    all others stays where it is. None: all entries, as the control is absolute."""
    flat: "Task | None" = None
    """Set with `shows`: the task with its whole state as observation, in which experts and planners act."""
    note: str = ""
    """What a run on it says at its beginning."""
    points: dict[str, tuple[int, int, int]] | None = None
    """Where named points (gripper, object, goal) stand in the observation: drawn where nothing can be rendered."""

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """(C, H, W) of the pictures that it shows beside a state; empty where it shows none."""
        return self.shows.shapes if self.shows else {}

    def with_episodes(self, max_steps: int | None = None, ends_at_success: bool | None = None) -> "Task":
        """The same task with another time limit, or episodes that end otherwise; None leaves the task's own."""
        given = {"max_steps": max_steps, "ends_at_success": ends_at_success}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def with_images(self, mode: str) -> "Task":
        """The same task seen by cameras, "rgb" or "rgbd". Raises UserError where it has no such mode."""
        shown = lookup(f"images of {self.name}", mode, self.images)
        made = {"make_env": shown.make_env, "make_on_gpu": shown.make_on_gpu, "make_native": shown.make_native}
        made |= {"flat": self, "make_expert": None}
        made |= {"make_privileged_expert": None, "demos_of": self.demos_of and f"{self.demos_of}:{mode}"}
        return replace(self, name=f"{self.name}:{mode}", obs_size=shown.state_size, shows=shown, points=None, **made)
