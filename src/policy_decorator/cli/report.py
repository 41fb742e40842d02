"""`pidec report RUN [RUN ...]`: the report of one run, or several runs in one picture."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.errors import UserError

ABOUT = """One RUN: write its report.html again, also while it is still running. Several: draw their learning curves \
into one picture, runs that differ in nothing but the seed as one curve with its range."""
NOT_A_LABEL = {"seed", "policy", "device", "workers"}


@dataclass(frozen=True)
class Options:
    """Options of `pidec report`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders."""
    out: Path | None = None
    """Picture of several runs; None: comparison.png. It is replaced where it exists."""
    json: Switch = False
    """Print JSON instead of a line."""


def parse(args: list[str]) -> Options:
    """Raises UserError: no run, a run twice, or --out for a single one."""
    options = parse_options(Options, "report", ABOUT, args)
    if not options.runs:
        raise UserError("Say which run: pidec report RUN [RUN ...]")
    if len({run.absolute() for run in options.runs}) < len(options.runs):
        raise UserError("A run was given twice.")
    if options.out is not None and len(options.runs) == 1:
        raise UserError("--out is for the picture of several runs: the report of one run is written into it.")
    if options.out is not None and options.out.suffix.lower() != ".png":
        raise UserError(f"--out must end in .png, got {options.out}.")
    return options


def run(options: Options) -> Answer:
    """Read the run folders, and nothing else."""
    from policy_decorator.runlog import RunFolder

    folders = [RunFolder.open(path) for path in options.runs]
    if len(folders) == 1:
        from policy_decorator.reports.html import write_report

        write_report(folders[0].path)
        path = folders[0].path / "report.html"
        return Answer({"run": folders[0].path, "report": path}, f"wrote {path}", options.json)
    groups = group({path: RunFolder.open(path).config() for path in options.runs})
    out = options.out or Path("comparison.png")
    _draw(groups, out)
    lines = [f"{label}: {len(paths)}" for label, paths in groups.items()]
    return Answer({"picture": out, "groups": groups}, "\n".join([*lines, f"wrote {out}"]), options.json)


def group(configs: Mapping[Path, Mapping[str, Any]]) -> dict[str, list[Path]]:
    """Runs by a label made of the method and of whatever differs, besides the seed, between those that have it."""
    flat = {path: dict(_flat(config)) for path, config in configs.items()}
    names = list(dict.fromkeys(name for settings in flat.values() for name in settings))
    varied = [name for name in names if len({repr(s[name]) for s in flat.values() if name in s}) > 1]
    told = [name for name in varied if name not in NOT_A_LABEL | {"method"}]
    groups: dict[str, list[Path]] = {}
    for path, settings in flat.items():
        words = [str(settings.get("method", "?")), *(f"{name} {settings[name]}" for name in told if name in settings)]
        groups.setdefault(", ".join(words), []).append(path)
    return groups


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def _draw(groups: dict[str, list[Path]], out: Path) -> None:
    from policy_decorator.disk import atomic_bytes, disk_errors
    from policy_decorator.reports.curves import compare
    from policy_decorator.reports.image import png

    picture = png(compare(groups))
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    atomic_bytes(out, picture)
