"""The four dexterous-hand tasks of Adroit, with the sizes and time limits of the paper's Table 2.

Source: Rajeswaran et al. 2018 (DAPG); the AdroitHand*-v1 environments of gymnasium-robotics, sparse variant.
"""

import contextlib
import io
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from policy_decorator.envs import rendering
from policy_decorator.envs.adroit_experts import EXPERTS
from policy_decorator.envs.images import SeenByCamera
from policy_decorator.envs.task import Images, Task, installed
from policy_decorator.errors import MissingExtra, lookup

CONTROL_HZ = 100.0
"""One step is 5 simulator steps of 2 ms."""


@dataclass(frozen=True)
class Hand:
    """What differs between the four tasks."""

    gym_id: str
    obs_size: int
    action_size: int
    max_steps: int
    """Of the paper; gymnasium-robotics registers 200 for all four."""
    joints: int
    """The observation begins with the angles of the hand's joints; with images, they are the state."""
    success: str
    """The environment tests it anew at every step: it may hold and be lost again."""
    points: dict[str, tuple[int, int, int]] | None = None
    """Only positions in world coordinates; the observation also holds differences."""
    camera: str = "fixed"


HANDS = {
    "door": Hand(
        "AdroitHandDoor-v1",
        39,
        28,
        300,
        27,
        "the door's hinge is at 1.35 rad or more, at that step",
        {"palm": (29, 30, 31), "handle": (32, 33, 34)},
        camera="vil_camera",  # "fixed" stands too near to see the whole door
    ),
    # Differs from the paper: its Table 2 says 46 for pen; the environment has 45.
    "pen": Hand(
        "AdroitHandPen-v1",
        45,
        24,
        200,
        24,
        "the pen is within 7.5 cm and 18 degrees (cosine 0.95) of the target, at that step",
        {"pen": (24, 25, 26)},
    ),
    "hammer": Hand(
        "AdroitHandHammer-v1",
        46,
        26,
        400,
        26,
        "the nail is within 1 cm of its place in the board, at that step",
        {"palm": (33, 34, 35), "hammer": (36, 37, 38), "nail": (42, 43, 44)},
    ),
    "relocate": Hand(
        "AdroitHandRelocate-v1",
        39,
        30,
        400,
        30,
        "the ball is within 10 cm of the target, at that step",
    ),
}


class SuccessOnly(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """float32 observations, actions clipped to [-1, 1]; a bool `info["success"]`, also the reward."""

    def __init__(self, env: gym.Env[Any, Any], obs_size: int) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        obs, _ = self.env.reset(seed=seed, options=options)
        return obs.astype(np.float32), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, _, _, info = self.env.step(np.clip(action, -1.0, 1.0))
        success = bool(np.all(info["success"]))
        return obs.astype(np.float32), float(success), False, False, {"success": success}


IMAGE_SIZE = 128
"""Pixels, high and wide (paper App. A.1.2)."""
IMAGE_CAMERA = "fixed"


def make_env_with_images(name: str, render_mode: str | None = None) -> SeenByCamera:
    """The same seen by a camera in the room. Raises what `make_env` raises."""
    del render_mode  # what it draws is what it observes
    env = make_env(name, "rgb_array", camera=IMAGE_CAMERA, width=IMAGE_SIZE, height=IMAGE_SIZE)
    return SeenByCamera(env, HANDS[name].joints, IMAGE_SIZE, IMAGE_SIZE)


def make_env(
    name: str,
    render_mode: str | None = None,
    *,
    camera: str | None = None,
    width: int = rendering.WIDTH,
    height: int = rendering.HEIGHT,
) -> SuccessOnly:
    """One environment of the task `name` ("door"); `render_mode` is None or "rgb_array", then of that size.

    Raises:
        UserError: there is no such task, or nothing can be rendered here.
        MissingExtra: gymnasium-robotics is not installed.
    """
    hand = lookup("Adroit task", name, HANDS)
    try:
        # On import it prints a notice about the dense rewards, which are not used here.
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ModuleNotFoundError as error:
        raise MissingExtra("gymnasium-robotics", "adroit") from error
    gym.register_envs(gymnasium_robotics)
    options: dict[str, Any] = {"reward_type": "sparse"}
    if render_mode is not None:
        rendering.use_renderer()
        options |= {
            "render_mode": render_mode,
            "camera_name": camera or hand.camera,
            "width": width,
            "height": height,
        }
    # -1: no time limit of its own. Unwrapped: gymnasium's checkers print about what is settled here.
    env = gym.make(hand.gym_id, max_episode_steps=-1, disable_env_checker=True, **options).unwrapped
    if render_mode is not None:
        rendering.draw_fast(env.model)  # pyright: ignore[reportAttributeAccessIssue]
    return SuccessOnly(env, hand.obs_size)


def tasks() -> dict[str, Task]:
    """All four, as "adroit/<name>"; nothing is imported."""
    return {f"adroit/{name}": _task(name, hand) for name, hand in HANDS.items()}


def _task(name: str, hand: Hand) -> Task:
    return Task(
        name=f"adroit/{name}",
        obs_size=hand.obs_size,
        action_size=hand.action_size,
        max_steps=hand.max_steps,
        control_hz=CONTROL_HZ,
        success=hand.success,
        demos=(
            ("scripted expert, embedded; or " if name in EXPERTS else "")
            + f"25 human demonstrations: pidec demos adroit/{name} --from-dapg FILE, --from-d4rl FILE "
            f"or --from-minari D4RL/{name}/human-v2; or --from-policy, --from-expert-npz"
        ),
        make_env=partial(make_env, name),
        make_expert=EXPERTS.get(name),
        why_not=partial(installed, "gymnasium_robotics", extra="adroit"),
        images={"rgb": _images(name, hand)},
        held_actions=None,  # positions of the joints
        points=hand.points,
    )


def _images(name: str, hand: Hand) -> Images:
    made = partial(make_env_with_images, name)
    return Images((IMAGE_CAMERA,), IMAGE_SIZE, IMAGE_SIZE, depth=False, state_size=hand.joints, make_env=made)
