"""`pidec imitate POLICY --demos FILE --out FOLDER`: a base policy, trained on demonstrations."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import tyro

from policy_decorator.base_policies import POLICIES, build
from policy_decorator.base_policies.checkpoint import CARD, save_policy
from policy_decorator.base_policies.imitate import ImitateConfig, ImitationResult, Imitator, imitate
from policy_decorator.base_policies.processes import rank
from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch, display, processes
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.cli.show import facts_table
from policy_decorator.demos.dataset import Demonstrations, check
from policy_decorator.disk import to_json
from policy_decorator.encoders import EncoderConfig
from policy_decorator.envs import get_task
from policy_decorator.envs.task import Task
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError, lookup
from policy_decorator.evaluation import VALIDATION, run_episodes
from policy_decorator.hardware import choose_device
from policy_decorator.progress import Display
from policy_decorator.reports.image import duration, percent

UNFINISHED = "training.pt"
"""What an interrupted training needs to go on, in the policy's folder until it is finished."""
ENVS = 16
"""Environments that are evaluated in together."""

Net = TypeVar("Net")


@dataclass(frozen=True)
class AnyNet:
    """Stands for the settings of a policy that was not named."""


@dataclass(frozen=True)
class Options(Generic[Net]):
    """Options of `pidec imitate`."""

    demos: Path
    """HDF5 file of demonstrations (pidec demos)."""
    out: Path
    """Folder for the policy."""
    net: Net
    """The policy's own settings."""
    training: ImitateConfig = field(default_factory=ImitateConfig)
    """How it is trained."""
    eyes: EncoderConfig = field(default_factory=EncoderConfig)
    """How it looks at pictures, of tasks that show some."""
    first: int | None = None
    """Use the first N demonstrations only."""
    no_evaluate: Switch = False
    """Skip the evaluations in simulation: the last parameters are kept instead of the best."""
    workers: int | None = None
    """Processes among which the simulators are shared out; 0: none but this one; None: one per core."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    overwrite: Switch = False
    """Replace a policy, or an unfinished training, that the folder holds."""
    resume: Switch = False
    """Go on with an interrupted training: give the same options again."""
    quiet: Switch = False
    """No progress on stderr."""
    json: Switch = False
    """Print JSON instead of a table."""
    policy: tyro.conf.SuppressFixed[tyro.conf.Fixed[str]] = ""
    """The word after `pidec imitate`."""


def parse(args: list[str]) -> Options[Any]:
    """Raises UserError for a policy that does not exist or was not named, and a folder that is in the way."""
    known = "\n".join(f"  {entry.name:<9} {entry.summary}" for entry in POLICIES.values())
    if not args or args[0].startswith("-"):
        if not {"-h", "--help"} & set(args):
            named = " or ".join(POLICIES)
            raise UserError(f"Say first which policy, {named}: pidec imitate mlp --demos FILE --out FOLDER")
        about = f"Train a base policy on demonstrations. POLICY is one of\n{known}\n\n"
        about += "and has settings of its own: pidec imitate mlp --help shows them too."
        return parse_options(
            Options[AnyNet], "imitate POLICY", about, ["--help"], _defaults(AnyNet(), "", ImitateConfig())
        )
    entry = lookup("base policy", args[0], POLICIES)
    about = f"{entry.summary} Of the checkpoints evaluated in simulation, the best is kept."
    kind: Any = Options[entry.config]
    defaults = _defaults(entry.config(), args[0], entry.training)
    options = parse_options(kind, f"imitate {args[0]}", about, args[1:], defaults)
    if options.training.eval_episodes < 1:
        raise UserError(f"--eval-episodes must be at least 1, got {options.training.eval_episodes}.")
    _check_room(options.out, options.overwrite, options.resume)
    return options


def run(options: Options[Any]) -> Answer:
    """Check the demonstrations, train, keep the best checkpoint and save it."""
    demos = Demonstrations.load(options.demos)
    task = get_task(demos.task)
    check(demos, task)
    demos = demos if options.first is None else demos.first(options.first)
    if not (options.resume or rank()):
        (options.out / UNFINISHED).unlink(missing_ok=True)
    device, started = choose_device(options.device), time.monotonic()
    torch.manual_seed(options.training.seed)
    sight = {"shapes": task.shows.shapes, "eyes": options.eyes} if task.shows else {}
    policy = build(options.policy, task.obs_size, task.action_size, options.net, **sight)
    result = _train(policy, demos, task, options, device)
    if rank():  # of several processes the first one answers
        raise SystemExit(0)
    details = {
        "task": task.name,
        "demonstrations": demos.describe() | {"file": options.demos},
        "training": options.training,
        "best_step": result.best_step,
        "best_success": result.best_success,
        "history": result.history,
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    save_policy(result.policy, options.out, details=to_json(details))
    (options.out / UNFINISHED).unlink(missing_ok=True)
    value = {"policy": options.policy, "folder": options.out, "settings": options.net, **details}
    return Answer(value, _table(options, details), options.json)


def _defaults(net: Any, name: str, training: ImitateConfig) -> Options[Any]:
    return Options(demos=tyro.MISSING, out=tyro.MISSING, net=net, training=training, policy=name)


def _check_room(out: Path, overwrite: bool, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, a folder is needed. Choose another --out.")
    unfinished = (out / UNFINISHED).exists()
    if resume and not unfinished:
        raise UserError(f"{out} holds no unfinished training. Begin one without --resume.")
    if resume or not out.exists() or not any(out.iterdir()):
        return
    if unfinished and not overwrite:
        raise UserError(f"{out} holds an unfinished training. Go on with --resume, or begin anew with --overwrite.")
    if not (out / CARD).exists() and not unfinished:
        raise UserError(f"{out} is not empty and holds no policy. Choose another --out.")
    if not overwrite:
        raise UserError(f"{out} already holds a policy. Choose another --out, or replace it with --overwrite.")


def _train(
    policy: Imitator, demos: Demonstrations, task: Task, o: Options[Any], device: torch.device
) -> ImitationResult:
    shown, cfg = display(o.quiet or rank() > 0), o.training
    alone = o.no_evaluate or rank() > 0
    evaluate, close = (None, lambda: None) if alone else _evaluation(policy, task, o, shown, device)
    try:
        with shown.stage(f"imitating ({o.policy})", cfg.steps) as update:

            def progress(step: int, steps: int, row: dict[str, float]) -> None:
                success = f", success {percent(row['success'])}" if "success" in row else ""
                update(step, note=f"loss {row['loss']:.3g}{success}")

            keep: dict[str, Any] = {"checkpoint": o.out / UNFINISHED, "resume": o.resume, "task": task}
            return imitate(policy, demos, cfg, evaluate=evaluate, progress=progress, device=device, **keep)
    except KeyboardInterrupt:
        left = (o.out / UNFINISHED).exists()
        hint = "Go on: the same command with --resume." if left else "Nothing was saved yet."
        raise KeyboardInterrupt(hint) from None
    finally:
        close()


def _evaluation(
    policy: Imitator, task: Task, o: Options[Any], shown: Display, device: torch.device
) -> tuple[Callable[[Imitator, int], float], Callable[[], None]]:
    """Success rate on the validation seeds, those that refinement selects on too; and how to end the simulators."""
    episodes, workers = o.training.eval_episodes, processes(o.workers)
    n = min(ENVS, episodes)
    env = make_vector(task, n, context=policy.context, chunk=policy.chunk, workers=workers, device=device)

    def evaluate(policy: Imitator, step: int) -> float:
        with shown.stage(f"evaluating at step {step:,}", episodes) as update:
            return run_episodes(env, policy, episodes, VALIDATION, update).rate

    return evaluate, env.close


def _table(o: Options[Any], details: dict[str, Any]) -> Any:
    best, demos = details["best_success"], details["demonstrations"]
    kept = "not measured" if best is None else f"{percent(best)} of {o.training.eval_episodes} episodes"
    if o.training.keep_success is not None:
        kept += f", nearest to {percent(o.training.keep_success)}"
    rows = [
        ("demonstrations", f"{demos['episodes']} episodes, {demos['steps']:,} steps"),
        ("gradient steps", f"{int(details['history'][-1]['step']):,}"),
        ("last loss", f"{details['history'][-1]['loss']:.4g}"),
        ("success", kept),
        ("kept from step", f"{details['best_step']:,}"),
        ("time", duration(details["wall_seconds"])),
        ("folder", str(o.out)),
    ]
    return facts_table(f"{details['task']}: {o.policy}", rows)
