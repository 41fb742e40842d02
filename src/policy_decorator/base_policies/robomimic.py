"""A rollout policy of robomimic (`start_episode`, and a call per step) as a base policy, its memory kept for every row.

Checkpoints are pickles. They are read with `weights_only=True`, which makes tensors, arrays and plain containers of
them and calls nothing. Pictures are given as its environments give them: real numbers in [0, 1].
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_decorator.base_policies.answers import check_numbers
from policy_decorator.base_policies.entries import Keys, entries_of, scaled, to_all
from policy_decorator.base_policies.rowwise import Rowwise
from policy_decorator.errors import UserError

IN_IT = {"model", "config", "algo_name", "shape_metadata"}


def from_robomimic(rollout: Any, action_size: int, *, keys: Keys | None = None, obs_size: int | None = None) -> Rowwise:
    """A `RolloutPolicy` with a memory for every row; rows are asked one after the other.

    Args:
        keys: its entries ("robot0_eef_pos", "object", ...) as parts of the observation, or a function that makes them
            from it; None: all of it, where it has one.

    Raises:
        UserError: entries that nobody named, statistics that are not finite, actions of another size.
    """
    algo = rollout.policy
    if algo.ac_dim != action_size:
        raise UserError(f"The robomimic policy answers with {algo.ac_dim} actions, {action_size} are needed.")
    check_numbers(algo.nets)
    for name, statistic in (rollout.obs_normalization_stats or {}).items():
        if not all(np.isfinite(value).all() for value in statistic.values()):
            raise UserError(f"The statistics of {name} in the robomimic policy are not finite: train it on other data.")
    sizes = {name: int(shape[0]) for name, shape in algo.obs_shapes.items()}
    named = to_all(sizes, keys, obs_size, "the robomimic policy")

    def choose(obs: Tensor) -> Any:
        entries = scaled(entries_of(obs.cpu(), named))
        return rollout({name: x.numpy() if isinstance(x, Tensor) else x for name, x in entries.items()})

    return Rowwise(algo, action_size, rollout.start_episode, choose)


def load_robomimic(path: Path, action_size: int, *, device: torch.device, keys: Keys | None = None) -> Rowwise:
    """A checkpoint (.pth). Raises UserError: without robomimic, or for a pickle that holds more than data."""
    try:
        with torch.serialization.safe_globals(_arrays()):
            checkpoint = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{path} is not read, as it holds more than weights ({str(error).splitlines()[0][:90]}), and such a file "
            "can do anything. Where you trust it: policy, _ = robomimic.utils.file_utils.policy_from_checkpoint("
            "ckpt_path=...), and decorate(policy, ...)."
        ) from None
    if not isinstance(checkpoint, dict) or not set(checkpoint) >= IN_IT:
        raise UserError(f"{path} is no checkpoint of robomimic: it has no {', '.join(sorted(IN_IT))}.")
    try:
        from robomimic.utils.file_utils import policy_from_checkpoint  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"{path} is a robomimic policy, and robomimic cannot be imported ({error}). Install it, or serve it "
            "from the environment where it runs: pidec refine --policy ws://HOST:PORT"
        ) from None
    rollout, _ = policy_from_checkpoint(ckpt_dict=checkpoint, device=device)
    return from_robomimic(rollout, action_size, keys=keys)


def is_robomimic(policy: Any) -> bool:
    """Whether an object is robomimic's `RolloutPolicy`."""
    return callable(policy) and callable(getattr(policy, "start_episode", None)) and hasattr(policy, "policy")


def _arrays() -> list[Any]:
    """What a numpy array in a pickle needs, by its names in numpy 1 and 2; statistics of observations are arrays."""
    makers = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    named = [(make, f"numpy.{core}.multiarray.{name}") for name, make in makers.items() for core in ("core", "_core")]
    return [np.ndarray, np.dtype, *named, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?"))]
