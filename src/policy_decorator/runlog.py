"""One folder a run: what was asked, what it ran on and every number it gave, readable while it grows.

    config.json      the resolved configuration      summary.json     the outcome, written once at the end
    provenance.json  code, versions, machine, argv   checkpoints/     written by the trainer
    metrics.jsonl    one JSON object a line          videos/          side-by-side films, paths, posters
    episodes.jsonl   outcome of every evaluation     report.html/png  written by `reports`
    tensorboard/     the metrics, over env_steps     tolerance.json   how `bound = tolerance` was found

Whole files are replaced in one move and lines are appended whole, so a reader never meets half of one.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from policy_decorator.disk import (
    append_json_line,
    atomic_bytes,
    atomic_json,
    disk_errors,
    free_disk_check,
    read_json,
    read_lines,
    to_json,
)
from policy_decorator.errors import UserError
from policy_decorator.provenance import git_state, now, provenance, versions_and_machine

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = [
    "CHECKPOINT",
    "COUNTS",
    "RunFolder",
    "atomic_bytes",
    "atomic_json",
    "free_disk_check",
    "provenance",
    "to_json",
]

CHECKPOINT = Path("checkpoints", "last.pt")
"""Below the folder: what a run is resumed from."""
COUNTS = ("env_steps", "decisions", "updates", "base_queries", "episodes")


def check_free(path: Path, overwrite: bool) -> bool:
    """Whether a new run may begin there at once; False: once the old one, which `overwrite` allows, is moved aside.

    Raises UserError: a file, a folder that is not ours, a run that is to stay.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, a folder is needed. Choose another --out.")
    if not path.exists() or not any(path.iterdir()):
        return True
    if not (path / "config.json").exists():  # never move away a folder that is not ours, such as a home
        raise UserError(f"{path} is not empty and holds no run. Choose another --out.")
    if not overwrite:
        choices = "Choose another --out, continue it with --resume, or start anew with --overwrite"
        raise UserError(f"{path} already holds a run. {choices} (the old run is kept beside it).")
    return False


def _make_room(path: Path, overwrite: bool) -> None:
    """Refuses a folder in use, or moves the old run aside. Raises UserError."""
    if check_free(path, overwrite):
        return
    _hold(path).release()
    stem = f"{path.absolute().name}.old-{datetime.now():%Y%m%d-%H%M%S}"
    names = (stem if k == 0 else f"{stem}-{k}" for k in range(1000))
    aside = next(old for old in map(path.absolute().with_name, names) if not old.exists())
    with disk_errors(path):
        path.absolute().rename(aside)


def _hold(path: Path) -> FileLock:
    """Keeps other processes from writing this run; ends with `release` or with the process. Raises UserError."""
    lock = FileLock(path / ".lock")
    try:
        with disk_errors(path):
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{path} is being written by another process: wait until it ends, or stop it.") from None
    return lock


class RunFolder:
    """A run on disk: `create` or `hold` to write, `open` to read."""

    def __init__(self, path: Path, *, tensorboard: bool = False) -> None:
        """Use `create`, `hold` or `open`."""
        self.path = Path(path)
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._lock: FileLock | None = None
        self._started = time.monotonic()
        self._seconds_before = 0.0

    @classmethod
    def create(cls, path: Path | str, config: Any, *, overwrite: bool = False, tensorboard: bool = True) -> "RunFolder":
        """A new run. Raises UserError when the folder holds one, unless `overwrite` moves that one aside."""
        path, resolved = Path(path), to_json(config)
        _make_room(path, overwrite)
        with disk_errors(path):
            for folder in (path, path / "checkpoints", path / "videos"):
                folder.mkdir(parents=True, exist_ok=True)
        run = cls(path, tensorboard=tensorboard)
        run._lock = _hold(path)
        seed = resolved.get("seed") if isinstance(resolved, dict) else None
        atomic_json(path / "config.json", resolved)  # first: it is what makes the folder a run
        atomic_json(path / "provenance.json", provenance(seed))
        return run

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """An existing run, to read. Raises UserError when there is none."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"There is no run folder {path}.")
        if not (path / "config.json").exists():
            inside = sorted(found.parent.name for found in path.glob("*/config.json"))
            hint = f" It holds the runs {', '.join(inside[:8])}." if inside else ""
            raise UserError(f"{path} is not a run folder: it has no config.json.{hint}")
        return cls(path)

    @classmethod
    def hold(cls, path: Path | str, *, tensorboard: bool = True) -> "RunFolder":
        """An existing run, kept from other processes and as it is until `rewind`.

        Raises UserError when there is none, or another process is writing it.
        """
        run = cls.open(path)
        run._lock, run._tensorboard = _hold(run.path), tensorboard
        return run

    def rewind(self, env_steps: int, offline_updates: int = 0) -> None:
        """Go on from a checkpoint at `env_steps`: what was logged later is dropped."""
        self._purge_step = env_steps + 1
        self.truncate_after(env_steps, offline_updates)
        if (self.path / "summary.json").exists():  # it tells of an end that is no longer the end
            (self.path / "summary.json").replace(self.path / "summary.before-resume.json")
        self._seconds_before = max((line.get("wall_seconds") or 0.0 for line in self.metrics()), default=0.0)
        record = self.provenance()
        again = {"started": now(), "argv": sys.argv, "env_steps": env_steps, "git": git_state()}
        again |= versions_and_machine()
        atomic_json(self.path / "provenance.json", {**record, "resumed": [*record.get("resumed", []), again]})

    def log(self, metrics: Mapping[str, float | int], counts: Mapping[str, int]) -> None:
        """One line of `metrics` beside all `COUNTS` and wall_seconds; TensorBoard gets it over env_steps.

        Raises ValueError when a count is missing, UserError when the disk is full.
        """
        missing = [name for name in COUNTS if name not in counts]
        if missing:
            raise ValueError(f"every line carries all counts, missing: {', '.join(missing)}")
        counted = {name: int(count) for name, count in counts.items()}
        line: dict[str, Any] = to_json({**counted, "wall_seconds": round(self.wall_seconds, 3), **metrics})
        append_json_line(self.path / "metrics.jsonl", line)
        if not self._tensorboard:
            return
        writer, env_steps = self._board(), counted.pop("env_steps")
        scalars = {name: line[name] for name in metrics} | {f"counts/{name}": n for name, n in counted.items()}
        with disk_errors(self.path / "tensorboard"):
            for name, value in scalars.items():
                if value is not None:
                    before = name.startswith("offline/")  # the first environment step
                    writer.add_scalar(name, value, counted["offline_updates"] if before else env_steps)
            writer.flush()

    def log_evaluation(
        self,
        name: str,
        env_steps: int,
        seeds: Sequence[int],
        success: Sequence[bool],
        lengths: Sequence[int],
        offline_updates: int = 0,
    ) -> None:
        """Every episode of one evaluation: `name` is base, offline, behaviour, full or final; lengths in steps.

        Raises ValueError when the three differ in length.
        """
        if not len(seeds) == len(success) == len(lengths):
            raise ValueError(f"{len(seeds)} seeds, {len(success)} outcomes and {len(lengths)} lengths do not match")
        columns = {"seeds": map(int, seeds), "success": map(bool, success), "lengths": map(int, lengths)}
        line = {
            "name": name,
            "env_steps": int(env_steps),
            **({"offline_updates": offline_updates} if offline_updates else {}),
            **{key: list(column) for key, column in columns.items()},
        }
        append_json_line(self.path / "episodes.jsonl", line)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """The outcome; its presence says that the run is finished."""
        atomic_json(self.path / "summary.json", summary)

    def atomic_json(self, name: str | Path, value: Any) -> Path:
        """Writes `value` to the file `name` of this folder, in one move. Returns its path."""
        atomic_json(self.path / name, value)
        return self.path / name

    def truncate_after(self, env_steps: int, offline_updates: int = 0) -> None:
        """Drops what was logged later, a last line that was cut short, and an earlier end's comparison."""

        def later(line: Mapping[str, Any]) -> bool:
            return line["env_steps"] > env_steps or line.get("offline_updates", 0) > offline_updates

        for path in (self.path / "metrics.jsonl", self.path / "episodes.jsonl"):
            if path.exists():
                lines = [line for line in read_lines(path) if not later(line) and not _of_the_end(line)]
                atomic_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    @property
    def wall_seconds(self) -> float:
        """Seconds this run has taken, those before a resume included."""
        return self._seconds_before + time.monotonic() - self._started

    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return read_json(self.path / "config.json")

    def provenance(self) -> dict[str, Any]:
        """Code, versions, machine and command line; empty where it was not kept."""
        path = self.path / "provenance.json"
        return read_json(path) if path.exists() else {}

    def summary(self) -> dict[str, Any]:
        """The outcome; empty while the run is unfinished."""
        path = self.path / "summary.json"
        return read_json(path) if path.exists() else {}

    @property
    def has_begun(self) -> bool:
        """Whether anything was learned that is kept: a checkpoint, or metrics behind the first environment step."""
        return any((self.path / "checkpoints").iterdir()) or any(line["env_steps"] > 0 for line in self.metrics())

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far; numbers that were not finite are None."""
        return read_lines(self.path / "metrics.jsonl")

    def evaluations(self, name: str | None = None) -> list[dict[str, Any]]:
        """The lines of episodes.jsonl (name, env_steps, seeds, success, lengths), or those of one name."""
        lines = read_lines(self.path / "episodes.jsonl")
        return [line for line in lines if name in (None, line["name"])]

    def close(self) -> None:
        """Flushes TensorBoard and lets other processes write. Safe to call twice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _board(self) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # torch is only needed to write, never to read

            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=self._purge_step)
        return self._writer


def _of_the_end(line: Mapping[str, Any]) -> bool:
    """Whether it is one of the two evaluations that compare base and refined policy after training."""
    return line.get("name") == "final" or (line.get("name") == "base" and line["env_steps"] > 0)
