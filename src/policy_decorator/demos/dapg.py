"""The demonstration files of DAPG (Rajeswaran et al. 2017), as published: `<env>-v0_demos.pickle`.

A pickled list of dicts `observations (L, Do)`, `actions (L, Da)`, `rewards (L,)`, `init_state_dict`, without
terminal observations and without success flags. A pickle may run any code when opened, so only the few names
that numpy arrays need are admitted here.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from policy_decorator.demos import adroit_success
from policy_decorator.demos.dataset import Demonstrations, check
from policy_decorator.demos.episode import Episode, gather
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError


def read_dapg(path: str | Path, task: Task) -> Demonstrations:
    """Demonstrations of `task` from a DAPG pickle, actions clipped to [-1, 1] and counted in `details`.

    Success of the four Adroit tasks is derived from observations and rewards (`adroit_success`). For other tasks
    it cannot be known: `details["success"]` is "unknown" and all are False. Either way it is what the old
    simulator saw; a replay in today's may end differently.
    Raises UserError: missing or damaged file, any pickled name that arrays do not need, wrong keys or shapes,
    and whatever `dataset.check` refuses.
    """
    path = Path(path)
    rule = adroit_success.rule_for(task)
    episodes = [_episode(path, index, entry, task, rule) for index, entry in enumerate(_open(path))]
    demos = gather(task.name, episodes, f"DAPG file {path.name}", {"success": adroit_success.words(rule)})
    check(demos, task)
    return demos


def _episode(path: Path, index: int, entry: Any, task: Task, rule: adroit_success.Rule | None) -> Episode:
    where = f"demonstration {index} in {path}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is a {type(entry).__name__}, not a dict of arrays: this is no DAPG file.")
    actions = _numbers(where, entry, "actions", rank=2)  # (L, Da)
    observations = _numbers(where, entry, "observations", rank=2, rows=len(actions))  # (L, Do)
    success = np.zeros(len(actions), dtype=bool)  # (L,)
    if rule is not None and observations.shape[1] == task.obs_size:
        rewards = _numbers(where, entry, "rewards", rank=1, rows=len(actions))  # (L,)
        success = adroit_success.derive(rule, observations, rewards)
    return Episode(observations, actions, success)


def _numbers(where: str, entry: dict[str, Any], name: str, rank: int, rows: int | None = None) -> np.ndarray:
    array = entry.get(name)
    if isinstance(array, np.ndarray) and array.dtype.kind in "fiu" and array.ndim == rank:
        if rows is None or len(array) == rows:
            return array
        raise UserError(f"{name} of {where} has {len(array)} rows for {rows} actions. Download the file again.")
    found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    raise UserError(f"{name} of {where} is {found}, not numbers of {rank} dimensions. Download the file again.")


def _latin1(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` does in pickles of raw bytes by Python 2 and protocol 2, and no other codec."""
    if encoding not in ("latin1", "latin-1"):
        raise UserError(f"The pickle asks for codec {encoding!r}, which arrays do not need. It was not opened.")
    return text.encode("latin1")


def _admitted() -> dict[tuple[str, str], Callable[..., Any]]:
    """Pickled names that arrays need, under the module names of numpy 1 and 2 (they moved to `_core`)."""
    # Taken from what numpy itself pickles: where these functions live is private and differs by version.
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    frombuffer = np.zeros(1).__reduce_ex__(5)[0]
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = reconstruct
        names[f"{core}.multiarray", "scalar"] = scalar
        names[f"{core}.numeric", "_frombuffer"] = frombuffer
    return names


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _admitted()[module_name, global_name]
        except KeyError:
            raise UserError(
                f"The pickle asks for {module_name}.{global_name}, which arrays do not need and which may "
                "run code. It was not opened. Use the file as published by the DAPG authors, or another "
                "format."
            ) from None


def _open(path: Path) -> list[Any]:
    if not path.is_file():
        raise UserError(
            f"There is no DAPG file at {path}. Get <env>-v0_demos.pickle from the authors' hand_dapg "
            "repository, or use the Minari version of the data."
        )
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise UserError(f"{path} is not a readable pickle ({error}). Download it again.") from error
    if not isinstance(content, list):
        raise UserError(f"{path} holds a {type(content).__name__}, not the list of demonstrations of a DAPG file.")
    return content
