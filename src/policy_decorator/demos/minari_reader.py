"""Demonstrations from Minari datasets (Younis et al. 2024), through the minari library.

Minari stores L + 1 observations for L actions, and info fields either as often as actions or, where the reset
had the same fields, once more at the front.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from policy_decorator.demos.dataset import ACTION_SLACK, Demonstrations, check
from policy_decorator.demos.episode import Episode, gather
from policy_decorator.envs.task import Task
from policy_decorator.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from minari import EpisodeData, MinariDataset


def read_minari(dataset_id_or_path: str, task: Task, download: bool = False) -> Demonstrations:
    """Demonstrations of `task` from a dataset id ("D4RL/door/human-v2") or a folder in Minari's format.

    The terminal observation is left out, Dict observations of plain vectors are joined in the order of their
    space, actions are clipped to [-1, 1] and counted in `details`. Success comes from `infos["success"]`;
    where an episode has none, `details["success"]` says so and its steps are False.
    Raises MissingExtra without minari; UserError if the dataset is missing or damaged, has other spaces than
    vectors or actions of another range, and for whatever `dataset.check` refuses.
    """
    dataset = _load(dataset_id_or_path, download)
    name = str(dataset.id)
    _check_spaces(name, dataset.observation_space, dataset.action_space)
    unknown = 0
    episodes: list[Episode] = []
    for data, seed in _stored(name, dataset):
        success = _success(name, data)
        unknown += success is None
        episodes.append(_episode(name, data, dataset.observation_space, success, seed))
    if unknown == 0:
        told = 'infos["success"]'
    else:
        told = "unknown" if unknown == len(episodes) else f"unknown in {unknown} of {len(episodes)} episodes"
    demos = gather(task.name, episodes, f"Minari dataset {name}", {"success": told})
    check(demos, task)
    return demos


def _load(name: str, download: bool) -> "MinariDataset":
    try:
        import minari
    except ImportError as error:
        raise MissingExtra("Minari", "minari") from error
    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            return minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
        return minari.load_dataset(name, download=download)
    except FileNotFoundError as error:
        raise UserError(
            f"Minari dataset {name!r} is not on this machine. Get it with: minari download {name} (or "
            "download=True); minari list remote lists what there is."
        ) from error
    except Exception as error:  # minari and its transports raise many kinds for damage or a missing network
        raise UserError(f"Minari could not open {name!r}: {error}") from error


def _stored(name: str, dataset: "MinariDataset") -> "list[tuple[EpisodeData, int | None]]":
    """Every episode with its reset seed, None where a seed alone does not bring its start back."""
    try:
        seeds = [_seed(about) for about in dataset.storage.get_episode_metadata(dataset.episode_indices)]
        return list(zip(dataset.iterate_episodes(), seeds, strict=True))
    except (OSError, KeyError, ValueError, AssertionError) as error:
        raise UserError(f"Minari dataset {name} is damaged ({error}). Download it again.") from error


def _seed(about: dict[str, Any]) -> int | None:
    # Minari draws a seed of its own where none was given, even for a start that options then decided: those of
    # the D4RL Adroit datasets are `options["initial_state_dict"]`.
    return None if set(about.get("options", {})) - {"minari_autoseed"} else about.get("seed")


def _check_spaces(name: str, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
    leaves = list(observations.spaces.values()) if isinstance(observations, spaces.Dict) else [observations]
    for space in [*leaves, actions]:
        if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
            raise UserError(
                f"Minari dataset {name} holds {space}. Only plain vectors (Box of one dimension, or a Dict "
                "of them) can be read: choose a state-based dataset."
            )
    assert isinstance(actions, spaces.Box)
    bounds = np.concatenate([actions.low, actions.high])
    if np.any(np.isfinite(bounds) & (np.abs(bounds) > 1 + ACTION_SLACK)):
        raise UserError(
            f"Minari dataset {name} has actions in [{bounds.min():g}, {bounds.max():g}], not in [-1, 1]; "
            "clipping them would change what was done. Rescale them first, to the action space of the task."
        )


def _success(name: str, data: "EpisodeData") -> np.ndarray | None:
    """(L,) bool, or None where the episode does not tell."""
    if not data.infos or "success" not in data.infos:
        return None
    success = np.asarray(data.infos["success"]).reshape(-1).astype(bool)  # (L,) or (L + 1,)
    steps = len(data.rewards)
    if len(success) not in (steps, steps + 1):
        raise UserError(
            f'Episode {data.id} of Minari dataset {name} has {len(success)} entries of infos["success"] for '
            f"{steps} "
            "steps. The dataset is damaged: download it again."
        )
    return success[len(success) - steps :]


def _episode(
    name: str, data: "EpisodeData", space: spaces.Space[Any], success: np.ndarray | None, seed: int | None
) -> Episode:
    actions = np.asarray(data.actions)  # (L, Da)
    if isinstance(space, spaces.Dict):
        parts = [np.asarray(data.observations[key]) for key in space.spaces]
    else:
        parts = [np.asarray(data.observations)]
    steps = len(actions)
    if any(len(part) not in (steps, steps + 1) for part in parts):
        raise UserError(
            f"Episode {data.id} of Minari dataset {name} has {[len(part) for part in parts]} observations "
            f"for {steps} actions. The dataset is damaged: download it again."
        )
    return Episode(
        observations=np.concatenate([part[:steps] for part in parts], axis=1),  # (L, Do)
        actions=actions,
        success=np.zeros(steps, dtype=bool) if success is None else success,
        seed=-1 if seed is None or not 0 <= seed < 2**63 else int(seed),
    )
