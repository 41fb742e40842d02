"""robomimic's datasets (Mandlekar et al. 2021) of low-dimensional observations, in HDF5.

    /data              attributes: total (steps in all), env_args (JSON: env_name, env_version, env_kwargs)
    /data/demo_<i>     attribute num_samples; actions (L, Da), rewards (L,), dones (L,), states (L, ...)
    /data/demo_<i>/obs robot0_eef_pos (L, 3), robot0_eef_quat (L, 4), robot0_gripper_qpos (L, 2), object (L, n), ...
    /mask/<name>       names of some demonstrations, where there are any: train, valid, ...

`object` holds the same numbers in files of every robosuite, but not in the same way (`_of_one_object`, `_of_the_cube`).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

from policy_decorator.demos.dataset import ACTION_SLACK, Demonstrations, check
from policy_decorator.demos.episode import Episode, gather
from policy_decorator.envs.robosuite import OSC_POSE, SCENES, Scene
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

ROBOT_KEYS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}
GET_ANOTHER = "Take the low_dim file that robomimic publishes for this task."
LATE = 0.03  # metres: farther than a hand moves in a step, nearer than it is to most things


def read_robomimic(path: str | Path, task: Task, mask: str | None = None) -> Demonstrations:
    """Demonstrations of `task` from a robomimic file, all of them or those under /mask/`mask`.

    Success is where the sparse reward is positive. Observations come out as `envs.robosuite` gives them.
    Raises UserError: missing or damaged file, another task's, no observations or rewards, a dense reward, an unknown
    mask, actions that are not OSC_POSE displacements in the axes of the world, and whatever `dataset.check` refuses.
    """
    path, scene = Path(path), _scene(task)
    if not path.is_file():
        raise UserError(f"There is no robomimic file at {path}. {GET_ANOTHER}")
    try:
        with h5py.File(path, "r") as file:
            version = _check_env(path, file, task, scene)
            names = _names(path, file, mask)
            episodes = [_episode(f"{name} in {path}", file[f"data/{name}"], scene) for name in names]
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a robomimic file ({error}). {GET_ANOTHER}") from error
    details = {"success": "rewards", "env_version": version, "mask": mask}
    demos = gather(task.name, episodes, f"robomimic file {path.name}", details)
    check(demos, task)
    return demos


def _scene(task: Task) -> Scene:
    name = task.name.removeprefix("robosuite/")
    if f"robosuite/{name}" != task.name or name not in SCENES:
        known = ", ".join(f"robosuite/{known}" for known in SCENES)
        raise UserError(f"robomimic files hold demonstrations of {known}, not of {task.name}.")
    return SCENES[name]


def _check_env(path: Path, file: Any, task: Task, scene: Scene) -> str:
    """The version of robosuite, "" in old files."""
    written = file["data"].attrs.get("env_args") if "data" in file else None
    if written is None:
        raise UserError(f"{path} has no /data with env_args: this is no robomimic file. {GET_ANOTHER}")
    about = json.loads(written)
    kwargs = about["env_kwargs"]
    if about["env_name"] != scene.env_name:
        raise UserError(f"{path} holds {about['env_name']}, but {task.name} is {scene.env_name}. {GET_ANOTHER}")
    wanted = {"robots": ["Panda"] * scene.robots, "control_freq": 20, "reward_shaping": False}
    robots = kwargs.get("robots")
    found = {**wanted, **kwargs, "robots": [robots] if isinstance(robots, str) else robots}
    wrong = [f"{name} {found[name]!r} instead of {wanted[name]!r}" for name in wanted if found[name] != wanted[name]]
    wrong += _wrong_controls(kwargs.get("controller_configs"), scene)
    if wrong:
        raise UserError(f"{path} was recorded with {', '.join(wrong)}: {task.name} cannot use it. {GET_ANOTHER}")
    return str(about.get("env_version", ""))


def _wrong_controls(configs: Any, scene: Scene) -> list[str]:
    wrong = []
    for config in configs if isinstance(configs, list) else [configs]:
        parts = (config or {}).get("body_parts", {})  # the way of robosuite 1.5
        arm = parts.get("right") or parts.get("arms", {}).get("right") or config or {}
        if arm.get("type") != "OSC_POSE":
            wrong.append(f"controller {arm.get('type')} instead of OSC_POSE")
            continue
        kind = arm.get("input_type", "delta" if arm.get("control_delta", True) else "absolute")
        if kind != "delta":
            wrong.append(f"{kind} poses as actions instead of displacements (delta)")
        default = "base" if parts else "world"  # before 1.5 there was only the world
        if arm.get("input_ref_frame", default) != "world" and scene.robots > 1:  # one robot stands along the axes
            wrong.append("actions in the axes of each robot's base instead of the world's")
        if not np.allclose(arm.get("output_max", OSC_POSE["output_max"]), OSC_POSE["output_max"]):
            wrong.append(f"actions that reach {arm['output_max']} instead of {OSC_POSE['output_max']}")
    return wrong


def _names(path: Path, file: Any, mask: str | None) -> list[str]:
    """Of the demonstrations, in the order of their numbers."""
    names = [name for name in file["data"] if name.startswith("demo_")]
    total, stored = file["data"].attrs.get("total"), sum(len(file[f"data/{name}/actions"]) for name in names)
    if total is not None and total != stored:
        raise UserError(f"{path} has {stored} steps, but should have {total}: it is incomplete. {GET_ANOTHER}")
    if mask is not None:
        masks = list(file.get("mask", ()))
        if mask not in masks:
            raise UserError(f"{path} has no mask {mask!r}. It has: {', '.join(masks) or 'none'}.")
        chosen = {name.decode() for name in file[f"mask/{mask}"][:]}
        names = [name for name in names if name in chosen]
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _episode(where: str, demo: Any, scene: Scene) -> Episode:
    actions = _numbers(where, demo, "actions", scene.action_size)
    if (reach := np.abs(actions).max(initial=0.0)) > 1 + ACTION_SLACK:
        raise UserError(f"Actions of {where} reach {reach:.4g}, not 1: absolute poses, or another scale. {GET_ANOTHER}")
    if demo.attrs.get("num_samples", len(actions)) != len(actions):
        raise UserError(
            f"{where} has {len(actions)} actions for num_samples {demo.attrs['num_samples']}. {GET_ANOTHER}"
        )
    if "obs" not in demo:
        raise UserError(
            f"{where} has no observations, only states. Extract them with robomimic's dataset_states_to_obs.py. Or: "
            f"{GET_ANOTHER}"
        )
    steps = len(actions)
    keys = {f"robot{i}_{key}": size for i in range(scene.robots) for key, size in ROBOT_KEYS.items()}
    robots = np.concatenate([_numbers(where, demo, f"obs/{key}", size, steps) for key, size in keys.items()], axis=1)
    objects = _numbers(where, demo, "obs/object", scene.objects_size, steps)
    rewards = _numbers(where, demo, "rewards", None, steps)
    arranged = ARRANGE.get(scene.env_name, _as_it_is)(where, robots, objects)
    return Episode(np.concatenate([robots, arranged], axis=1), actions, rewards > 0)


def _numbers(where: str, demo: Any, key: str, columns: int | None, rows: int | None = None) -> np.ndarray:
    if key not in demo:
        raise UserError(f"{where} has no {key}. {GET_ANOTHER}")
    array = np.asarray(demo[key][:], dtype=np.float64)
    shape = (len(array) if rows is None else rows,) + (() if columns is None else (columns,))
    if array.shape != shape:
        raise UserError(f"{key} of {where} has the shape {array.shape}, not {shape}. {GET_ANOTHER}")
    return array


def _as_it_is(where: str, robots: np.ndarray, objects: np.ndarray) -> np.ndarray:
    del where, robots
    return objects


def _of_one_object(where: str, robots: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Pose in the world | pose in the gripper's frame (L, 14).

    Since robosuite 1.5 the second comes first, one step late, and as zeros in the first row. Which of the two it is
    shows in the numbers: one pose must follow from the other.
    """
    if _close(_seen_from(robots, objects[:, :7])[:, :3], objects[:, 7:10]):
        return objects
    pose = objects[:, 7:]
    seen = _seen_from(robots, pose)
    if not _close(seen[:, :3], objects[:, :3]):
        raise UserError(f"In neither order do the two poses in obs/object of {where} belong together. {GET_ANOTHER}")
    return np.concatenate([pose, seen], axis=1)


def _of_the_cube(where: str, robots: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Pose | gripper minus cube (L, 10); since robosuite 1.5 it is cube minus gripper."""
    away = robots[:, :3] - objects[:, :3]
    if not (_close(away, objects[:, 7:]) or _close(-away, objects[:, 7:])):
        raise UserError(f"The positions in obs/object of {where} do not belong together. {GET_ANOTHER}")
    return np.concatenate([objects[:, :7], away], axis=1)


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.median(np.linalg.norm(a - b, axis=1)) < LATE)


def _seen_from(robots: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(L, 7): poses in the world as seen from the first gripper."""
    gripper = Rotation.from_quat(robots[:, 3:7]).inv()
    nowhere = np.linalg.norm(pose[:, 3:], axis=1, keepdims=True) == 0
    turned = gripper * Rotation.from_quat(np.where(nowhere, [0, 0, 0, 1], pose[:, 3:]))
    return np.concatenate([gripper.apply(pose[:, :3] - robots[:, :3]), turned.as_quat(canonical=True)], axis=1)


ARRANGE: dict[str, Callable[[str, np.ndarray, np.ndarray], np.ndarray]] = {
    "NutAssemblySquare": _of_one_object,
    "PickPlaceCan": _of_one_object,
    "Lift": _of_the_cube,
}
