"""How demonstrations lie on disk: write all or nothing, read with a reason for every refusal.

The layout (flat HDF5, three text attributes, five arrays) is described in `dataset`.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from policy_decorator.disk import atomic_bytes, disk_errors
from policy_decorator.errors import UserError

FORMAT = "policy_decorator.demonstrations"
VERSION = 1
ATTRIBUTES = ("task", "source", "details")
ARRAYS = {"observations": "f4", "actions": "f4", "success": "?", "lengths": "i8", "seeds": "i8"}


def write(path: str | Path, attributes: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write `ATTRIBUTES` and `ARRAYS`; a failure leaves the old file as it was.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    # Laid out in memory first: HDF5 reports a full disk late and unreliably, a plain write does not.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update({"format": FORMAT, "version": VERSION, **attributes})
        for name, kind in ARRAYS.items():
            file.create_dataset(name, data=np.asarray(arrays[name], dtype=kind))
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_bytes(path, buffer.getvalue())


def read(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The attributes and arrays `write` wrote. UserError: missing, another format, damaged."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There are no demonstrations at {path}. Record some, or check the path.")
    try:
        with h5py.File(path, "r") as file:
            _check(file, path)
            attributes = {name: str(file.attrs[name]) for name in ATTRIBUTES}
            return attributes, {name: np.asarray(file[name], dtype=kind) for name, kind in ARRAYS.items()}
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path} cannot be read as demonstrations in HDF5 ({error}). It is another kind of file or "
            "damaged: record it again, or read it with the reader for its format."
        ) from error


def _check(file: h5py.File, path: Path) -> None:
    written, version = file.attrs.get("format"), file.attrs.get("version")
    if written != FORMAT:
        raise UserError(
            f"{path} is HDF5, but not demonstrations of this package (format {written!r}, not {FORMAT!r}). "
            "Convert it with the reader for its format first."
        )
    if version != VERSION:
        raise UserError(
            f"{path} has format version {version}; this release reads version {VERSION}. Use the release "
            "that wrote it, or record the demonstrations again."
        )
    missing = [name for name in ARRAYS if not isinstance(file.get(name), h5py.Dataset)]
    missing += [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise UserError(f"{path} is damaged: it has no {', '.join(missing)}. Record the demonstrations again.")
