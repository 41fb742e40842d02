"""Published expert policies of Adroit as plain arrays (DAPG, Rajeswaran et al. 2017).

x = (obs - in_shift) / (in_scale + 1e-8)
action = clip(out_scale * (w2 tanh(w1 tanh(w0 x + b0) + b1) + b2) + out_shift, -1, 1)
"""

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from policy_decorator.errors import UserError

_WEIGHTS = ("in_shift", "in_scale", "w0", "b0", "w1", "b1", "w2", "b2", "out_shift", "out_scale")


def read_expert_npz(path: str | Path) -> Callable[[np.ndarray], np.ndarray]:
    """The expert in an `.npz` file: observation (Do,) -> action (Da,) float32 in [-1, 1], its mean action.

    Raises UserError if the file is missing, is not such a file or lacks an array. Pickled arrays are refused.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no expert at {path}. Check the path.")
    try:
        with np.load(path, allow_pickle=False) as file:
            weights = {name: np.asarray(file[name], dtype=np.float32) for name in _WEIGHTS}
    except (OSError, ValueError, KeyError, AttributeError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{path} is not an expert of this format ({error}). It must be an .npz file of plain arrays "
            f"{', '.join(_WEIGHTS)}."
        ) from error
    in_shift, in_scale, w0, b0, w1, b1, w2, b2, out_shift, out_scale = weights.values()

    def act(obs: np.ndarray) -> np.ndarray:
        x = (obs - in_shift) / (in_scale + 1e-8)  # (Do,)
        x = np.tanh(w1 @ np.tanh(w0 @ x + b0) + b1)  # (hidden,)
        return np.clip(out_scale * (w2 @ x + b2) + out_shift, -1, 1).astype(np.float32)  # (Da,)

    return act
