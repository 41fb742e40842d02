"""The random generators that all of a process shares: PyTorch's, numpy's and Python's. A policy may draw from each."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """The same numbers from here on for the same seed."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def forked() -> Iterator[None]:
    """What is drawn inside leaves no trace outside."""
    before = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        random.setstate(before[1])


def state() -> dict[str, Any]:
    """Of all, as tensors and numbers."""
    _, keys, *numpy = np.random.get_state()  # noqa: NPY002
    version, words, gauss = random.getstate()
    return {
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy_rng": [torch.from_numpy(np.asarray(keys).astype(np.int64)), *numpy],
        "python_rng": [version, torch.tensor(words), gauss],
    }


def restore(state: dict[str, Any]) -> None:
    """Back to `state`; a checkpoint of an earlier version has PyTorch's alone."""
    torch.set_rng_state(state["rng"].cpu())
    if state["cuda_rng"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_rng"]])
    if "numpy_rng" in state:
        keys, *rest = state["numpy_rng"]
        np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
        version, words, gauss = state["python_rng"]
        random.setstate((version, tuple(words.tolist()), gauss))
