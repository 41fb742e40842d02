"""Files that are never half written, and the errors of a full disk.

JSON here is strict (RFC 8259): nan and infinities, which it cannot say, are written as null.
"""

import csv
import dataclasses
import errno
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from policy_decorator.errors import UserError


def to_json(value: Any) -> Any:
    """Dataclasses, mappings, sequences, paths, arrays -> what JSON can say. Raises TypeError for the rest."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return to_json(value.value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if hasattr(value, "__qualname__"):  # a class or a function
        return f"{value.__module__}.{value.__qualname__}"
    tolist = getattr(value, "tolist", None)  # numpy and torch, scalars too, without importing either
    if callable(tolist):
        return to_json(tolist())
    raise TypeError(f"cannot write a {type(value).__name__} to JSON: {value!r}")


def from_json(kind: Any, value: Any, where: str = "the file") -> Any:
    """The inverse of `to_json` for a type: a dataclass of dataclasses, tuples, paths, literals and plain values.

    Fields that are not there take their defaults. Where the type of a field follows from another, the dataclass says so
    in `kinds(value)`, by the field's name. Raises UserError, naming the field, for what does not fit; TypeError
    for a type that this cannot read.
    """
    origin, inside = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(kind, value, where)
    if origin in (Union, UnionType):
        return _first_fitting(inside, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = inside[:1] * len(value) if inside[1:] == (...,) else inside
        if len(kinds) == len(value):
            return tuple(from_json(*pair, where) for pair in zip(kinds, value, strict=True))
    elif origin is Literal:
        if value in inside:
            return value
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind in (bool, int, float, str, Path, NoneType):
        accepted = (int, float) if kind is float else kind
        if isinstance(value, accepted) and isinstance(value, bool) == (kind is bool):
            return value
    elif origin is not tuple:
        raise TypeError(f"cannot read a {kind} from JSON")
    raise UserError(f"{where} is {value!r}, which is no {getattr(kind, '__name__', kind)}.")


def _dataclass_from_json(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} is {value!r}, not the settings of a {kind.__name__}.")
    hints, fields = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    hints |= kind.kinds(value) if hasattr(kind, "kinds") else {}
    if strange := sorted(set(value) - set(fields)):
        raise UserError(f"{where} holds {', '.join(strange)}, which this version does not know.")
    given = {name: from_json(hints[name], value[name], f"{where}: {name}") for name in fields if name in value}
    try:
        return kind(**given)
    except TypeError as error:
        raise UserError(f"{where} does not describe a {kind.__name__}: {error}.") from None


def _first_fitting(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds:
        with suppress(UserError):
            return from_json(kind, value, where)
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise UserError(f"{where} is {value!r}, which is no {names}.")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into a UserError; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "Free some space, then continue with --resume."
            raise UserError(f"The disk is full: could not write {path}. {hint}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"Not allowed to write {path}. Choose another --out.") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"Could not write {path}: there is a file where a folder is needed.") from error
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends well; the old file stays otherwise.

    Raises UserError when the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}.tmp{path.suffix}")
    with disk_errors(path):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def atomic_bytes(path: Path, data: bytes) -> None:
    """Writes the whole file or leaves the old one. Raises UserError when the disk is full or read-only."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def atomic_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A heading and lines. Raises UserError where the disk is full or read-only."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    atomic_bytes(path, text.getvalue().encode())


def atomic_json(path: Path, value: Any) -> None:
    """`atomic_bytes` of `to_json(value)`, indented."""
    text = json.dumps(to_json(value), indent=2, allow_nan=False, ensure_ascii=False)
    atomic_bytes(path, (text + "\n").encode())


def append_json_line(path: Path, value: Any) -> None:
    """Adds one line, whole, to a JSON-lines file. Raises UserError when the disk is full or read-only."""
    line = json.dumps(to_json(value), allow_nan=False, ensure_ascii=False) + "\n"
    size = path.stat().st_size if path.exists() else 0
    with disk_errors(path):
        try:
            with path.open("ab") as file:
                file.write(line.encode())
        except OSError:
            with suppress(OSError):  # a line cut short would spoil the next one
                os.truncate(path, size)
            raise


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no {path}.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file, none if there is no file. Raises UserError when damaged."""
    if not path.exists():
        return []
    complete, _, _ = path.read_bytes().rpartition(b"\n")  # what follows is still being written, or was cut short
    lines = [line for line in complete.split(b"\n") if line.strip()]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from None


def free_disk_check(path: Path, bytes_needed: int) -> None:
    """Raises UserError unless the disk that holds (or will hold) `path` has `bytes_needed` bytes free."""
    path = Path(path).absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < bytes_needed:
        need = f"{bytes_needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        raise UserError(f"Not enough space on the disk of {path}: {need}. Free some space or choose another --out.")
