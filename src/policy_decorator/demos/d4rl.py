"""Demonstrations from the flat HDF5 files of D4RL (Fu et al. 2020): `<task>-human-v1.hdf5`, `-cloned-`, `-expert-`.

observations (N, Do), actions (N, Da), rewards (N,), terminals (N,), timeouts (N,): episodes end to end, each ending
where `timeouts` or `terminals` (a dropped pen) is True, without terminal observations and without success flags.
`-cloned-` files are cut off in the middle of an episode.
"""

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from policy_decorator.demos import adroit_success
from policy_decorator.demos.dataset import Demonstrations, check
from policy_decorator.demos.episode import Episode, gather
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

_RANKS = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1}
_AGAIN = "Download it again, or give the file of another format to the reader for that format."


def read_d4rl(path: str | Path, task: Task) -> Demonstrations:
    """Demonstrations of `task` from a D4RL file, actions clipped to [-1, 1] and counted in `details`.

    Success of the four Adroit tasks is derived from observations and rewards (`adroit_success`); for other tasks
    `details["success"]` is "unknown" and all are False. `details["cut_off"]` counts the episode that the file
    breaks off in, which is kept. Seeds are unknown.
    Raises UserError: missing or damaged file, arrays missing or of other shapes, no episode ends, and whatever
    `dataset.check` refuses (observations and actions of another task among them).
    """
    path = Path(path)
    arrays = _read(path)
    ends = np.flatnonzero(arrays["terminals"] | arrays["timeouts"]) + 1  # first row after each episode
    rows = len(arrays["actions"])
    if not len(ends):
        raise UserError(
            f"In {path} no step ends an episode: terminals and timeouts are False throughout, so that its "
            f"{rows} steps cannot be told apart. Use a file that has timeouts (version v1 of the dataset)."
        )
    bounds = np.concatenate([[0], ends, [rows] if ends[-1] < rows else []]).astype(int)
    rule = adroit_success.rule_for(task)
    if arrays["observations"].shape[1] != task.obs_size:
        rule = None  # `check` refuses below, in words
    episodes = [_episode(arrays, slice(*ends), rule) for ends in pairwise(bounds)]
    details = {"success": adroit_success.words(rule), "cut_off": int(ends[-1] < rows)}
    demos = gather(task.name, episodes, f"D4RL file {path.name}", details)
    check(demos, task)
    return demos


def _episode(arrays: dict[str, np.ndarray], rows: slice, rule: adroit_success.Rule | None) -> Episode:
    observations, actions = arrays["observations"][rows], arrays["actions"][rows]  # (L, Do), (L, Da)
    if rule is None:
        return Episode(observations, actions, np.zeros(len(actions), dtype=bool))
    return Episode(observations, actions, adroit_success.derive(rule, observations, arrays["rewards"][rows]))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(
            f"There is no D4RL file at {path}. Download <task>-human-v1.hdf5 (or -cloned-, -expert-) of D4RL's "
            "Adroit datasets, or use the Minari version of the data."
        )
    try:
        with h5py.File(path, "r") as file:
            _check(file, path)
            arrays = {name: np.asarray(file[name]) for name in _RANKS if name in file}
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as HDF5 ({error}). {_AGAIN}") from error
    rows = len(arrays["actions"])
    for name in ("terminals", "timeouts"):
        arrays[name] = arrays.get(name, np.zeros(rows)).astype(bool)
    return arrays


def _check(file: h5py.File, path: Path) -> None:
    """Refuse what is no such file; of `terminals` and `timeouts`, older files have only one."""
    missing = [name for name in ("observations", "actions", "rewards") if name not in file]
    if missing or not ("timeouts" in file or "terminals" in file):
        held = ", ".join(sorted(file)[:6]) or "nothing"
        raise UserError(
            f"{path} is HDF5, but no D4RL file: it has no {', '.join(missing) or 'timeouts'}, but {held}. {_AGAIN}"
        )
    rows = None
    for name in _RANKS:
        array = file.get(name)
        if array is None:
            continue
        if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiub" or array.ndim != _RANKS[name]:
            found = f"{array.dtype} {array.shape}" if isinstance(array, h5py.Dataset) else "a group"
            raise UserError(f"{name} of {path} is {found}, not numbers of {_RANKS[name]} dimensions. {_AGAIN}")
        rows = len(array) if rows is None else rows
        if len(array) != rows:
            raise UserError(f"{name} of {path} has {len(array)} rows, its observations have {rows}. {_AGAIN}")
