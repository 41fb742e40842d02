"""`pidec refine --task T --policy FOLDER`: a run folder with a refined policy and its report."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from policy_decorator import api
from policy_decorator.base_policies.places import is_place
from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch, display, peek
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.cli.saved import check_fits, describe
from policy_decorator.cli.show import run_table
from policy_decorator.config import RefineConfig
from policy_decorator.disk import from_json
from policy_decorator.envs import get_task
from policy_decorator.errors import UserError, lookup
from policy_decorator.experiments.presets import settings, unlisted
from policy_decorator.hardware import choose_device, compiles, uses_cuda_graphs
from policy_decorator.limits import check_numbers
from policy_decorator.methods import METHODS
from policy_decorator.methods.offline import FromDemonstrations
from policy_decorator.runlog import CHECKPOINT, RunFolder

ABOUT = """Learn a small bounded residual on a frozen base policy by reinforcement learning from sparse success, \
then compare the two on the same episodes. --preset decides what is not given, --bound and --horizon matter most. \
A run that was stopped goes on with: pidec refine --out RUN --resume"""


@dataclass(frozen=True)
class Options:
    """Options of `pidec refine`."""

    settings: RefineConfig
    """The run; what is not given is the preset's."""
    preset: str = "quick"
    """Where the defaults come from (pidec list presets)."""
    demos: tuple[Path, ...] = ()
    """Demonstrations of the task, one file or several: their statistics standardise what the residual sees, a share of
    them fills the batches (--demo-share), and bound = auto is read from them."""
    out: Path | None = None
    """New run folder; None: runs/<task>-<method>-<seed>."""
    resume: Switch = False
    """Go on with the run in --out from its last checkpoint, with its own settings."""
    overwrite: Switch = False
    """Start anew where --out holds a run, which is kept beside it."""
    force: Switch = False
    """Refine even a base policy that never succeeds."""
    quiet: Switch = False
    """No progress on stderr."""
    json: Switch = False
    """Print JSON instead of a table."""


def parse(args: list[str]) -> Options:
    """Raises UserError: unknown names, contradictions, numbers out of range, no policy, nothing to resume."""
    given = peek(args, "preset", "task", "policy", "out", "method", "bound", "horizon", "demo_share")
    if given["method"] == "residual-rl" and (given["bound"] or given["horizon"]):
        raise UserError("residual-rl has no --bound and no --horizon: it is policy-decorator with 1 and 0.")
    resume = "--resume" in args
    config = _of_run(args, given) if resume and not {"-h", "--help"} & set(args) else _of_preset(given)
    preset = given["preset"] or Options.preset
    options = parse_options(Options, "refine", ABOUT, args, Options(settings=config, preset=preset))
    get_task(options.settings.task)
    lookup("method", options.settings.method, METHODS)
    check_numbers(options.settings, spelled=lambda name: f"--{name.replace('_', '-')}")
    if given["demo_share"] and options.settings.learn.demo_share > 0 and not (options.demos or resume):
        raise UserError("--demo-share is a share of demonstrations: give --demos too.")
    if isinstance(options.settings.learn, FromDemonstrations) and not (options.demos or resume):
        raise UserError(f"{options.settings.method} learns from demonstrations: give --demos.")
    return options


def run(options: Options) -> Answer:
    """Refine, and say what came of it."""
    config, shown = options.settings, display(options.quiet)
    out = options.out or Path("runs") / f"{config.task.replace('/', '-')}-{config.method}-{config.seed}"
    choose_device(config.device)
    for refuse in (uses_cuda_graphs, compiles):  # before there is a folder
        refuse(config)
    base = _base_of_run(out, config) if options.resume else config.policy
    saved = describe(base)
    check_fits(saved, get_task(config.task), shown)
    if not options.resume and (note := unlisted(options.preset, config, saved.kind)) is not None:
        shown.say(f"Warning: {note}")
    how: dict[str, Any] = {"resume": options.resume, "overwrite": options.overwrite, "force": options.force}
    try:
        refined = api.run(config, base, demos=options.demos or None, out=out, display=shown, **how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_go_on(out)) from None
    value = refined.summary | {"run": out, "report": out / "report.html"}
    return Answer(value, run_table(refined.summary, out), options.json)


def how_to_go_on(out: Path) -> str:
    """What to do after an interrupt."""
    if (out / CHECKPOINT).exists():
        return f"Continue with: pidec refine --out {out} --resume"
    return "There was no checkpoint yet: start again, with --overwrite or another --out."


def _of_preset(given: dict[str, str | None]) -> RefineConfig:
    """The preset's settings for this task and kind of policy; what must be given and is not stays open."""
    task, kind = given["task"], ""
    if task is not None:
        get_task(task)
    if given["policy"] is not None:
        saved = describe(given["policy"])
        task, kind = task or saved.task, saved.kind
    method = given["method"] or RefineConfig.method
    config = settings(given["preset"] or Options.preset, task or "", kind=kind, method=method)
    return dataclasses.replace(config, task=task or tyro.MISSING, policy=given["policy"] or tyro.MISSING)


def _of_run(args: list[str], given: dict[str, str | None]) -> RefineConfig:
    if given["out"] is None:
        raise UserError("Resuming needs the run folder: pidec refine --out RUN --resume")
    other = [name for name in ("--overwrite", "--force") if name in args]
    other += ["--preset"] if given["preset"] else []
    if other:
        raise UserError(f"--resume goes on with the run as it is: leave out {', '.join(other)}.")
    folder = RunFolder.open(given["out"])
    return from_json(RefineConfig, folder.config(), str(folder.path / "config.json"))


def _base_of_run(out: Path, config: RefineConfig) -> str | Path:
    for place in (out / "base", config.policy):
        if is_place(place) or Path(place).is_dir():
            return place
    raise UserError(
        f"{out} does not hold its base policy ({config.policy}): resume it from Python, with "
        "decorate(policy, ..., resume=True)."
    )
