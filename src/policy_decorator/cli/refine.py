"""`pidec refine --task T --policy FOLDER`: a run folder with a refined policy and its report."""

import dataclasses
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from policy_decorator import api
from policy_decorator.base_policies.places import is_place
from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch, display, peek
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.cli.saved import check_fits, choose_device, describe
from policy_decorator.cli.show import run_table
from policy_decorator.config import RefineConfig
from policy_decorator.disk import from_json
from policy_decorator.envs import get_task
from policy_decorator.errors import UserError, lookup
from policy_decorator.experiments.presets import settings
from policy_decorator.hardware import compiles, uses_cuda_graphs
from policy_decorator.methods import METHODS
from policy_decorator.methods.offline import FromDemonstrations
from policy_decorator.runlog import RunFolder

ABOUT = """Learn a small bounded residual on a frozen base policy by reinforcement learning from sparse success, \
then compare the two on the same episodes. --preset decides what is not given, --bound and --horizon matter most. \
A run that was stopped goes on with: pidec refine --out RUN --resume"""

FROM_ONE = "envs eval_episodes test_episodes replay_capacity max_steps total_steps steps_per_round log_every"
FROM_ONE += " opening_steps eval_every save_every n_step noise_hold width depth critics batch_size actor_every threads"
FROM_ONE += " critic_subset demo_share_steps select_samples rollout epochs minibatches step_back"
FROM_ONE += " success_window tuned_steps cql_samples backup_samples most_weight value_epochs value_batch"
FROM_ONE += " conjugate_gradients d_width d_depth d_batch d_steps discriminator_every compared trunk imitation_batch"
FROM_ONE += " lora_rank lora_alpha action_steps"
FROM_ZERO = "seed residual_penalty workers horizon warmup_steps updates_per_step temperature max_grad_norm"
FROM_ZERO += " exploration_std smoothing_std smoothing_limit value_weight entropy_weight critic_rounds offline_updates"
FROM_ZERO += " cql_weight advantage_sharpness demo_weight damping gradient_penalty imitation_weight"
FROM_ZERO += " critic_first base_steps"
ABOVE_ZERO = "bound lr tau initial_std clip target_kl sampling_std density_std noise_limit clip_smallest clip_growth"
ABOVE_ZERO += " critic_lr reward_limit gamma_denoise cql_temperature advantage_temperature normalized_step cloning_lr"
ABOVE_ZERO += " d_lr begin_std action_lr action_grad_norm"
SHARES = "gamma success_tolerance gae_lambda demo_share demo_share_end gamma_denoise scale_gamma expectile demo_decay"


@dataclass(frozen=True)
class Options:
    """Options of `pidec refine`."""

    settings: RefineConfig
    """The run; what is not given is the preset's."""
    preset: str = "quick"
    """Where the defaults come from (pidec list presets)."""
    demos: tuple[Path, ...] = ()
    """Demonstrations of the task, whose statistics standardise what the residual sees: one file or several."""
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
    _check_numbers(options.settings)
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
    check_fits(describe(base), get_task(config.task), shown)
    how: dict[str, Any] = {"resume": options.resume, "overwrite": options.overwrite, "force": options.force}
    before = _identity(out)
    try:
        refined = api.run(config, base, demos=options.demos or None, out=out, display=shown, **how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_go_on(out)) from None
    except UserError:
        if _identity(out) != before and _never_began(out):
            shutil.rmtree(out)  # of this very call: in the way of the next try, and empty but for the settings
        raise
    value = refined.summary | {"run": out, "report": out / "report.html"}
    return Answer(value, run_table(refined.summary, out), options.json)


def how_to_go_on(out: Path) -> str:
    """What to do after an interrupt."""
    if (out / "checkpoints" / "last.pt").exists():
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


def _flat(config: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value)
        else:
            yield field.name, value


def _check_numbers(config: RefineConfig) -> None:
    values = dict(_flat(config))
    rules = (
        (FROM_ONE, "at least 1", lambda x: x >= 1),
        (FROM_ZERO, "at least 0", lambda x: x >= 0),
        (ABOVE_ZERO, "above 0", lambda x: x > 0),
        (SHARES, "in [0, 1]", lambda x: 0 <= x <= 1),
    )
    for names, rule, holds in rules:
        for name in names.split():
            value = values.get(name)
            if value is not None and value != "auto" and not (math.isfinite(value) and holds(value)):
                raise UserError(f"--{name.replace('_', '-')} must be {rule}, got {value}.")
    train = config.train
    if train.total_steps <= train.warmup_steps:
        raise UserError(
            f"--total-steps {train.total_steps} must be more than --warmup-steps {train.warmup_steps}: nothing is "
            "learned during the warm-up."
        )


def _identity(out: Path) -> int | None:
    config = out / "config.json"
    return config.stat().st_mtime_ns if config.exists() else None


def _never_began(out: Path) -> bool:
    """Whether a run ended before its first training step was logged."""
    if _identity(out) is None or any((out / "checkpoints").iterdir()):
        return False
    return all(line["env_steps"] == 0 for line in RunFolder.open(out).metrics())
