"""Meta-World's 50 Sawyer tasks, with the goal in the observation and layouts that follow `reset(seed=...)`.

obs (39,) = gripper xyz, opening, two objects of xyz + quaternion (18) | the same a step ago (18) | goal xyz.
action (4,) = end-effector displacement in xyz (1 cm per unit and step), gripper effort; both in [-1, 1].
Source: Yu et al. 2019 (Meta-World) and the metaworld 3.1 package.
"""

import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from policy_decorator.envs import rendering
from policy_decorator.envs.images import SeenByCamera
from policy_decorator.envs.task import Expert, Images, Task, installed
from policy_decorator.errors import MissingExtra, lookup

OBS_SIZE, ACTION_SIZE = 39, 4
CONTROL_HZ = 80.0
"""One step is 5 simulator steps of 2.5 ms."""
MAX_STEPS = 200
"""Meta-World's own limit is 500. Its scripted experts, three seeds on each of the 50 tasks, succeeded in 145
of 150 episodes within 200 steps, after 75 steps on average and 186 at most."""

NAMES = (
    "assembly",
    "basketball",
    "bin-picking",
    "box-close",
    "button-press",
    "button-press-topdown",
    "button-press-topdown-wall",
    "button-press-wall",
    "coffee-button",
    "coffee-pull",
    "coffee-push",
    "dial-turn",
    "disassemble",
    "door-close",
    "door-lock",
    "door-open",
    "door-unlock",
    "drawer-close",
    "drawer-open",
    "faucet-close",
    "faucet-open",
    "hammer",
    "hand-insert",
    "handle-press",
    "handle-press-side",
    "handle-pull",
    "handle-pull-side",
    "lever-pull",
    "peg-insert-side",
    "peg-unplug-side",
    "pick-out-of-hole",
    "pick-place",
    "pick-place-wall",
    "plate-slide",
    "plate-slide-back",
    "plate-slide-back-side",
    "plate-slide-side",
    "push",
    "push-back",
    "push-wall",
    "reach",
    "reach-wall",
    "shelf-place",
    "soccer",
    "stick-pull",
    "stick-push",
    "sweep",
    "sweep-into",
    "window-close",
    "window-open",
)

SUCCESS = {
    "peg-insert-side": "the peg's head is within 7 cm (across: 3.5 cm) of the goal in the hole, at that step",
}


class SeededGoals(gym.Env[np.ndarray, np.ndarray]):
    """One Meta-World simulator whose layout and goal follow `reset(seed=...)`, and nothing else.

    Meta-World itself ignores that seed and draws from a list of 50 layouts that is fixed when it is made.
    Here each seed draws a layout of its own, from the same ranges. There is no time limit; the reward is the
    success, and `info` holds only `success`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(self, simulator: Any, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS_SIZE,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)
        self._simulator = simulator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Without a seed, the next layout is drawn from this environment's own generator."""
        super().reset(seed=seed)
        self._simulator.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        obs, _ = self._simulator.reset()
        return obs.astype(np.float32), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Actions outside [-1, 1] are clipped."""
        obs, _, _, _, info = self._simulator.step(np.clip(action, -1.0, 1.0))
        success = bool(info["success"])
        return obs.astype(np.float32), float(success), False, False, {"success": success}

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(H, W, 3) uint8. The simulator's corner cameras hang upside down: turned by 180 degrees."""
        return self._simulator.render()[::-1, ::-1].copy()

    def close(self) -> None:
        self._simulator.close()


IMAGE_SIZE = 64
"""Pixels, high and wide: what the released code's CNN is for."""
IMAGE_CAMERA = "corner4"
GRIPPER = 4
"""Entries of the observation about the gripper, with which it begins: the state where there are images."""


def make_env_with_images(name: str, render_mode: str | None = None) -> SeenByCamera:
    """The same seen by a camera in the room. Raises what `make_env` raises."""
    del render_mode  # what it draws is what it observes
    env = make_env(name, "rgb_array", width=IMAGE_SIZE, height=IMAGE_SIZE)
    return SeenByCamera(env, GRIPPER, IMAGE_SIZE, IMAGE_SIZE)


def make_env(
    name: str, render_mode: str | None = None, *, width: int = rendering.WIDTH, height: int = rendering.HEIGHT
) -> SeededGoals:
    """One environment of the task `name` ("peg-insert-side"); `render_mode` is None or "rgb_array", then of that size.

    Raises:
        UserError: there is no such task, or nothing can be rendered here.
        MissingExtra: Meta-World is not installed.
    """
    lookup("Meta-World task", name, dict.fromkeys(NAMES))
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise MissingExtra("Meta-World", "metaworld") from error
    if render_mode is not None:
        rendering.use_renderer()
    simulator: Any = ALL_V3_ENVIRONMENTS[f"{name}-v3"](
        render_mode=render_mode,  # pyright: ignore[reportArgumentType, reportCallIssue]
        camera_name=IMAGE_CAMERA,
        width=width,
        height=height,
    )
    if render_mode is not None:
        rendering.draw_fast(simulator.model)
    # What `set_task` does in a benchmark with visible goals, without building its 50 layouts first (7 s).
    simulator._partially_observable = False
    del simulator.sawyer_observation_space  # cached with the goal's bounds at zero, and steps clip to it
    simulator._freeze_rand_vec = False
    simulator.seeded_rand_vec = True
    simulator._set_task_called = True
    simulator.max_path_length = np.inf  # the simulator refuses to go on after 500 steps
    return SeededGoals(simulator, render_mode)


def make_expert(name: str) -> Expert:
    """Meta-World's scripted expert for the task `name`: (39,) -> (4,) in [-1, 1].

    Raises:
        UserError: there is no such task.
        MissingExtra: Meta-World is not installed.
    """
    lookup("Meta-World task", name, dict.fromkeys(NAMES))
    try:
        from metaworld.policies import ENV_POLICY_MAP
    except ModuleNotFoundError as error:
        raise MissingExtra("Meta-World", "metaworld") from error
    policy: Any = ENV_POLICY_MAP[f"{name}-v3"]()

    def act(obs: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Environments clip response to [-1, 1]": so do we
            action = policy.get_action(obs)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    return act


def tasks() -> dict[str, Task]:
    """All 50, as "metaworld/<name>"; nothing is imported."""
    return {f"metaworld/{name}": _task(name) for name in NAMES}


def _task(name: str) -> Task:
    return Task(
        name=f"metaworld/{name}",
        obs_size=OBS_SIZE,
        action_size=ACTION_SIZE,
        max_steps=MAX_STEPS,
        control_hz=CONTROL_HZ,
        success=SUCCESS.get(name, "Meta-World's own success test of this task holds, at that step"),
        demos="scripted expert, embedded",
        make_env=partial(make_env, name),
        make_expert=partial(make_expert, name),
        why_not=partial(installed, "metaworld", extra="metaworld"),
        images={"rgb": _images(name)},
        points={"gripper": (0, 1, 2), "object": (4, 5, 6), "goal": (36, 37, 38)},
    )


def _images(name: str) -> Images:
    made = partial(make_env_with_images, name)
    return Images((IMAGE_CAMERA,), IMAGE_SIZE, IMAGE_SIZE, depth=False, state_size=GRIPPER, make_env=made)
