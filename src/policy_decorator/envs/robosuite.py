"""The robomimic tasks in robosuite 1.5: low-dimensional observations and actions as in robomimic's datasets.

obs of one Panda (9,) = gripper xyz, its orientation as quaternion xyzw, two finger joints; of all robots in order, then
of the objects (`Scene.objects`). Positions are in the world, in metres.
action of one Panda (7,) = displacement of the gripper in xyz (5 cm per unit and step), rotation vector (0.5 rad per
unit and step), both in the axes of the world, and the fingers (above 0 closes, below 0 opens).
Source: Mandlekar et al. 2021 (robomimic), Zhu et al. 2020 (robosuite), Ren et al. 2024 (DPPO: order of the observation,
time limits). robosuite 1.4 and older, in which the datasets were recorded, order the objects' numbers as here;
1.5 puts some elsewhere, and one step late, so they are taken from the simulator here.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from policy_decorator.envs import rendering
from policy_decorator.envs.robosuite_experts import DISPLACEMENT, ROBOT_OBS, ROTATION, PickUp, Square
from policy_decorator.envs.robosuite_transport import Transport
from policy_decorator.envs.task import Expert, Task, installed
from policy_decorator.errors import MissingExtra, lookup

CONTROL_HZ = 20.0
"""One step is 25 simulator steps of 2 ms."""
ROBOT_ACTION = 7
# Differs from robomimic, where the hammer's head (1.5 to 1.8 cm half size) and the cube of Lift (2 to 2.2 cm) are drawn
# anew in every episode: a model that stays makes a reset of 3 to 10 ms out of one of 0.9 to 2.5 s.
MODEL_SEED = 0

OSC_POSE = {
    "type": "OSC_POSE",
    "input_type": "delta",
    "input_ref_frame": "world",
    "input_min": -1,
    "input_max": 1,
    "output_min": [-DISPLACEMENT] * 3 + [-ROTATION] * 3,
    "output_max": [DISPLACEMENT] * 3 + [ROTATION] * 3,
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}
"""The controller of robomimic's datasets (their `env_args`), in the words of robosuite 1.5."""

Objects = Callable[[Any], list[np.ndarray]]
"""A robosuite environment -> the objects' part of the observation."""


@dataclass(frozen=True)
class Scene:
    """What differs between the tasks."""

    env_name: str
    """In robosuite and in the datasets' `env_args`."""
    objects: Objects
    objects_size: int
    max_steps: int
    success: str
    points: dict[str, tuple[int, int, int]]
    make_expert: Callable[[], Expert]
    robots: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    camera: str = "agentview"

    @property
    def obs_size(self) -> int:
        return self.robots * ROBOT_OBS + self.objects_size

    @property
    def action_size(self) -> int:
        return self.robots * ROBOT_ACTION


class Robomimic(gym.Env[np.ndarray, np.ndarray]):
    """One robosuite simulator whose layout follows `reset(seed=...)`, and nothing else.

    There is no time limit; the reward is the success, tested at every step, and `info` holds only `success`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(self, simulator: Any, scene: Scene, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (scene.obs_size,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (scene.action_size,), np.float32)
        self._simulator, self._scene = simulator, scene
        self._viewer: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Without a seed, the next layout is drawn from this environment's own generator."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        # robosuite draws everything from this generator. Its samplers hold it too: so it is set, not replaced.
        self._simulator.rng.bit_generator.state = np.random.default_rng(drawn).bit_generator.state
        self._simulator.reset()
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Actions outside [-1, 1] are clipped."""
        self._simulator.step(np.clip(action, -1.0, 1.0))
        success = bool(self._simulator._check_success())
        return self._observe(), float(success), False, False, {"success": success}

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(H, W, 3) uint8."""
        model, data = self._simulator.sim.model, self._simulator.sim.data
        if self._viewer is None:
            from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

            rendering.draw_fast(model._model)
            self._viewer = OffScreenViewer(model._model, data._data, rendering.WIDTH, rendering.HEIGHT)
            self._viewer.vopt.geomgroup[0] = 0  # shapes for collisions, not for the eye
            self._viewer.vopt.sitegroup[:] = 0
        return self._viewer.render("rgb_array", camera_id=model.camera_name2id(self._scene.camera)).copy()

    def close(self) -> None:
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None
        self._simulator.close()

    def _observe(self) -> np.ndarray:
        parts = [part for robot in self._simulator.robots for part in _robot(self._simulator, robot)]
        return np.concatenate(parts + self._scene.objects(self._simulator), dtype=np.float32)


def _robot(env: Any, robot: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position and orientation come from two frames that differ by a fixed rotation, in the datasets as here."""
    fingers = env.sim.data.qpos[robot._ref_gripper_joint_pos_indexes["right"]]
    return _gripper(env, robot), _xyzw(env.sim.data.get_body_xquat(robot.robot_model.eef_name["right"])), fingers


def _gripper(env: Any, robot: Any) -> np.ndarray:
    return np.asarray(env.sim.data.site_xpos[robot.eef_site_id["right"]])


def _xyzw(wxyz: np.ndarray) -> np.ndarray:
    return np.asarray(wxyz)[[1, 2, 3, 0]]


def _held(body: str, env: Any) -> list[np.ndarray]:
    """xyz and quaternion of a body in the world (7) | the same in the gripper's frame (7)."""
    from robosuite.utils import transform_utils

    pos, quat = np.array(env.sim.data.get_body_xpos(body)), _xyzw(env.sim.data.get_body_xquat(body))
    gripper, orientation, _ = _robot(env, env.robots[0])
    world = transform_utils.pose_inv(transform_utils.pose2mat((gripper, orientation)))
    pose = transform_utils.pose_in_A_to_pose_in_B(transform_utils.pose2mat((pos, quat)), world)
    return [pos, quat, *transform_utils.mat2pose(pose)]


def _cube(env: Any) -> list[np.ndarray]:
    """xyz and quaternion of the cube (7) | gripper minus cube (3)."""
    pos, quat = np.array(env.sim.data.get_body_xpos("cube_main")), env.sim.data.get_body_xquat("cube_main")
    return [pos, _xyzw(quat), _gripper(env, env.robots[0]) - pos]


def _transport(env: Any) -> list[np.ndarray]:
    """Hammer 7, trash 7, handle of the lid 7, target bin 3, trash bin 3, hammer in its bin 1, trash in its bin 1 |
    hammer and handle minus gripper 0 (6) | hammer and trash minus gripper 1 (6)."""
    now = env.transport.get_states()
    poses = [now[name] for name in ("payload_pose", "trash_pose", "lid_handle_pose")]
    hammer, trash, handle = (pos for pos, _ in poses)
    there = np.array([now["payload_in_target_bin"], now["trash_in_trash_bin"]], dtype=float)
    first, second = (_gripper(env, robot) for robot in env.robots)
    relative = [hammer - first, handle - first, hammer - second, trash - second]
    return [*(part for pose in poses for part in pose), now["target_bin_pos"], now["trash_bin_pos"], there, *relative]


SCENES = {
    "lift": Scene(
        "Lift",
        _cube,
        10,
        400,
        "the cube is 4 cm above the table, at that step",
        {"gripper": (0, 1, 2), "cube": (9, 10, 11)},
        PickUp,
    ),
    "can": Scene(
        "PickPlaceCan",
        partial(_held, "Can_main"),
        14,
        400,
        "the can is in its compartment of the bin and the gripper 4.2 cm away, at that step",
        {"gripper": (0, 1, 2), "can": (9, 10, 11)},
        partial(PickUp, depth=0.02, place=(0.15, 0.34, 0.92)),
        camera="frontview",
    ),
    "square": Scene(
        "NutAssemblySquare",
        partial(_held, "SquareNut_main"),
        14,
        400,
        "the nut is around the peg, at most 5 cm above the table, and the gripper 4.2 cm from its centre, at that step",
        {"gripper": (0, 1, 2), "nut": (9, 10, 11)},
        Square,
    ),
    "transport": Scene(
        "TwoArmTransport",
        _transport,
        41,
        800,
        "the hammer touches the floor of its bin and the trash that of the trash bin, at that step",
        {"gripper 0": (0, 1, 2), "gripper 1": (9, 10, 11), "hammer": (18, 19, 20), "trash": (25, 26, 27)},
        Transport,
        robots=2,
        options={"env_configuration": "opposed"},
    ),
}


def make_env(name: str, render_mode: str | None = None) -> Robomimic:
    """One environment of the task `name` ("square"); `render_mode` is None or "rgb_array".

    Raises:
        UserError: there is no such task, or nothing can be rendered here.
        MissingExtra: robosuite is not installed.
    """
    scene = lookup("robomimic task", name, SCENES)
    with _silent():
        try:
            import robosuite
        except ModuleNotFoundError as error:
            raise MissingExtra("robosuite", "robosuite") from error
        simulator: Any = robosuite.make(
            scene.env_name,
            robots=["Panda"] * scene.robots,
            controller_configs=[
                {"type": "BASIC", "body_parts": {"right": dict(OSC_POSE)}} for _ in range(scene.robots)
            ],
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            control_freq=int(CONTROL_HZ),
            ignore_done=True,
            hard_reset=False,
            seed=MODEL_SEED,
            **scene.options,
        )
    if render_mode is not None:
        rendering.use_renderer()
    return Robomimic(simulator, scene, render_mode)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Neither robosuite's advice on stderr, nor its choice of an OpenGL backend: `rendering` makes that one."""
    level, backend = logging.root.manager.disable, os.environ.get("MUJOCO_GL")
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        if backend is None:
            os.environ.pop("MUJOCO_GL", None)
        else:
            os.environ["MUJOCO_GL"] = backend


def tasks() -> dict[str, Task]:
    """All four, as "robosuite/<name>"; nothing is imported."""
    return {f"robosuite/{name}": _task(name, scene) for name, scene in SCENES.items()}


def _task(name: str, scene: Scene) -> Task:
    return Task(
        name=f"robosuite/{name}",
        obs_size=scene.obs_size,
        action_size=scene.action_size,
        max_steps=scene.max_steps,
        control_hz=CONTROL_HZ,
        success=scene.success,
        demos=f"scripted expert, embedded; or robomimic's: pidec demos robosuite/{name} --from-robomimic FILE",
        make_env=partial(make_env, name),
        why_not=partial(installed, "robosuite", extra="robosuite"),
        make_expert=scene.make_expert,
        held_actions=tuple(range(ROBOT_ACTION - 1, scene.action_size, ROBOT_ACTION)),
        points=scene.points,
    )
