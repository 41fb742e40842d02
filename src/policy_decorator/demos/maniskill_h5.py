"""Demonstrations in ManiSkill's own format: `<name>.h5` and, beside it, `<name>.json`.

The HDF5 file has a group `traj_<k>` per episode with `actions` (L, Da), `success` (L,) and, where observations were
recorded, `obs` (L + 1, Do); the JSON file names the environment, its settings and every episode's seed. Published
files hold neither observations nor end-effector actions: `replay_trajectory` of ManiSkill makes them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from policy_decorator.demos.dataset import Demonstrations, check
from policy_decorator.demos.episode import Episode, gather
from policy_decorator.envs.maniskill import simulated
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError


def read_maniskill(path: str | Path, task: Task) -> Demonstrations:
    """Demonstrations of `task` from a trajectory file of ManiSkill 3, terminal observations left out.

    Raises UserError: a missing or damaged file, another environment or control mode, no recorded observations or
    another observation mode than "state", and whatever `dataset.check` refuses.
    """
    path = Path(path)
    episodes = [_episode(path, about, group, task) for about, group in trajectories(path, task)]
    demos = gather(task.name, episodes, f"ManiSkill file {path.name}", {"success": "recorded at every step"})
    check(demos, task)
    return demos


def trajectories(path: Path, task: Task) -> Iterator[tuple[dict[str, Any], h5py.Group]]:
    """What the JSON file says of every episode, and the episode's group. Raises as `read_maniskill`."""
    about = _about(path)
    _check_environment(path, about["env_info"], task)
    try:
        with h5py.File(path, "r") as file:
            for episode in about["episodes"]:
                group = file.get(f"traj_{episode['episode_id']}")
                if not isinstance(group, h5py.Group):
                    raise UserError(f"{path} lacks episode {episode['episode_id']}, which its .json file lists.")
                yield episode, group
    except OSError as error:
        raise UserError(f"{path} is not a readable HDF5 file ({error}). Get or make it again.") from error


def _about(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise UserError(f"There is no {file}: a trajectory of ManiSkill is a .h5 file and a .json file beside it.")
    try:
        about = json.loads(beside.read_text())
    except ValueError as error:
        raise UserError(f"{beside} is not readable JSON ({error}). Get or make it again.") from error
    if not isinstance(about, dict) or "env_id" not in about.get("env_info", {}) or "episodes" not in about:
        raise UserError(f"{beside} does not describe a trajectory of ManiSkill: it needs env_info and episodes.")
    return about


def _check_environment(path: Path, env_info: dict[str, Any], task: Task) -> None:
    wanted, given = simulated(task), env_info.get("env_kwargs", {})
    if env_info["env_id"] not in (wanted.env_id, wanted.planned):
        raise UserError(f"{path} is of {env_info['env_id']}, not of {wanted.planned or wanted.env_id} ({task.name}).")
    if given.get("control_mode") != wanted.control_mode or given.get("obs_mode") != "state":
        raise UserError(
            f"{path} has control mode {given.get('control_mode')!r} and observations {given.get('obs_mode')!r}; "
            f"{task.name} needs {wanted.control_mode!r} and 'state'. Convert it: python -m "
            f"mani_skill.trajectory.replay_trajectory --traj-path {path} -c {wanted.control_mode} -o state --save-traj"
        )


def _episode(path: Path, about: dict[str, Any], group: h5py.Group, task: Task) -> Episode:
    missing = [name for name in ("obs", "actions", "success") if not isinstance(group.get(name), h5py.Dataset)]
    if missing:
        raise UserError(f"{group.name} of {path} has no array {' and no array '.join(missing)}. Make the file again.")
    observations, actions, success = (np.asarray(group[name]) for name in ("obs", "actions", "success"))
    if not len(observations) - 1 == len(actions) == len(success):
        raise UserError(
            f"{group.name} of {path} has {len(actions)} actions, {len(observations)} observations and "
            f"{len(success)} labels of success, where L, L + 1 and L belong together. Make the file again."
        )
    solved = np.flatnonzero(success)
    end = solved[0] + 1 if len(solved) else len(actions)  # episodes of this package end at the first success
    return Episode(observations[:end], actions[:end], success[:end].astype(bool), about.get("episode_seed", -1))
