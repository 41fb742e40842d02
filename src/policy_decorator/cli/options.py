"""How options are written, and a look at a few of them before the others are parsed."""

import argparse
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from policy_decorator.errors import UserError
from policy_decorator.progress import Bars, Display, Silent

T = TypeVar("T")

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""`--json`, without a `--no-json`."""
Task = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]


def parse(kind: type[T], command: str, description: str, args: list[str], default: Any = None) -> T:
    """The options `kind`, its nested fields as flat options. Exits, as tyro does, on --help and on wrong options."""
    flat: Any = tyro.conf.OmitArgPrefixes[kind]
    given = {} if default is None else {"default": default}
    about = "\n".join(textwrap.fill(line, 90) for line in description.splitlines())
    return tyro.cli(flat, prog=f"pidec {command}", description=about, args=args, **given)


def peek(args: Sequence[str], *names: str) -> dict[str, str | None]:
    """The options of the fields `names`, None where not given: they decide on the defaults of the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}")
    try:
        return vars(parser.parse_known_args(list(args))[0])
    except argparse.ArgumentError:  # an option without its value: tyro will say so
        return dict.fromkeys(names)


def task_first(args: Sequence[str]) -> list[str]:
    """A task that was named by --task, as `pidec refine` has it, in the place of TASK."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--task")
    try:
        known, others = parser.parse_known_args(list(args))
    except argparse.ArgumentError:  # without its value
        return list(args)
    return list(args) if known.task is None else [known.task, *others]


def processes(workers: int | None) -> int:
    """--workers as `make_vector` wants it. Raises UserError for a negative number."""
    if workers is not None and workers < 0:
        raise UserError(f"--workers must be at least 0, got {workers}.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (cores if cores > 1 else 0) if workers is None else workers


def check_out(out: Path, overwrite: bool) -> None:
    """Raises UserError where --out is a folder, or a file that may not be replaced."""
    if out.is_dir():
        raise UserError(f"{out} is a folder, --out needs a file.")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists. Choose another --out, or replace it with --overwrite.")


def display(quiet: bool) -> Display:
    """Bars on stderr, or nothing."""
    return Silent() if quiet else Bars()
