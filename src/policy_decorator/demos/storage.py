"""How demonstrations lie on disk: write all or nothing, read with a reason for every refusal.

The layout (flat HDF5, three text attributes, five arrays, pictures where there are any) is described in `dataset`.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from policy_decorator.demos.pictures import KINDS
from policy_decorator.disk import atomic_file, disk_errors
from policy_decorator.errors import UserError

FORMAT = "policy_decorator.demonstrations"
VERSION, WITH_PICTURES = 1, 2
"""Without pictures a file is of the version that every release reads; with them, of one that older ones refuse."""
ATTRIBUTES = ("task", "source", "details")
ARRAYS = {"observations": "f4", "actions": "f4", "success": "?", "lengths": "i8", "seeds": "i8"}


def write(
    path: str | Path,
    attributes: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
    pictures: Mapping[str, np.ndarray],
) -> None:
    """Write `ATTRIBUTES`, `ARRAYS` and pictures; a failure leaves the old file as it was.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, _hdf5(temporary) as file:
        file.attrs.update({"format": FORMAT, "version": WITH_PICTURES if pictures else VERSION, **attributes})
        for name, kind in ARRAYS.items():
            file.create_dataset(name, data=np.asarray(arrays[name], dtype=kind))
        for name, stored in pictures.items():
            packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": stored.itemsize > 1}
            file.create_dataset(name, data=stored, chunks=(1, *stored.shape[1:]) if stored.size else None, **packed)


class _Disk(io.FileIO):
    """A file that remembers why it could not be written: HDF5 reports a full disk late and unreliably."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        left = memoryview(data)
        try:
            while len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = self.failure or error
        return len(data)


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file at `path`. Raises the OSError of the first write that failed."""
    with _Disk(path, "w+") as disk:
        try:
            with h5py.File(disk, "w") as file:
                yield file
        except Exception as error:
            raise disk.failure or error from None
        if disk.failure:
            raise disk.failure


def read(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The attributes, arrays and pictures `write` wrote. UserError: missing, another format, damaged."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There are no demonstrations at {path}. Record some, or check the path.")
    try:
        with h5py.File(path, "r") as file:
            _check(file, path)
            attributes = {name: str(file.attrs[name]) for name in ATTRIBUTES}
            arrays = {name: np.asarray(file[name], dtype=kind) for name, kind in ARRAYS.items()}
            return attributes, arrays, {name: np.asarray(file[name]) for name in KINDS if name in file}
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
    if version not in (VERSION, WITH_PICTURES):
        raise UserError(
            f"{path} has format version {version}; this release reads versions {VERSION} and {WITH_PICTURES}. Use the "
            "release that wrote it, or record the demonstrations again."
        )
    missing = [name for name in ARRAYS if not isinstance(file.get(name), h5py.Dataset)]
    missing += [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise UserError(f"{path} is damaged: it has no {', '.join(missing)}. Record the demonstrations again.")
