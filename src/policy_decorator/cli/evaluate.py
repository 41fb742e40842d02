"""`pidec evaluate FOLDER`: whole episodes of a saved policy; of a refined one beside its base, on the same seeds."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table

from policy_decorator import api
from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch, display, processes
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.cli.saved import Saved, check_fits, describe, load
from policy_decorator.cli.show import facts_table, gain_row, rate_row
from policy_decorator.envs import get_task
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError
from policy_decorator.evaluation import TEST, Episodes
from policy_decorator.hardware import choose_device
from policy_decorator.progress import Display
from policy_decorator.statistics import paired_gain, wilson

ABOUT = """Measure a policy on whole episodes, with 95 % intervals. FOLDER is a saved base policy, a run, or the \
refined/ folder of one; a refined policy and its base play the same episodes. On a run, the default seeds give again \
the episodes of its final comparison."""


@dataclass(frozen=True)
class Options:
    """Options of `pidec evaluate`."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A base policy, a run, or its refined/ folder; a policy's file, or the address of a policy server."""
    task: str | None = None
    """Task to evaluate on; None: the one the folder was made for."""
    episodes: int = 100
    """Episodes, and as many for the base."""
    first_seed: int = TEST
    """Seed of the first episode; the others follow."""
    envs: int | None = None
    """Environments stepped together; None: the run's, or 16."""
    workers: int | None = None
    """Processes among which the simulators are shared out; 0: none but this one; None: one per core."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    quiet: Switch = False
    """No progress on stderr."""
    json: Switch = False
    """Print JSON, with the outcome of every episode."""


def parse(args: list[str]) -> Options:
    """Raises UserError for numbers out of range and an unknown task."""
    options = parse_options(Options, "evaluate", ABOUT, args)
    for name, value, least in (("episodes", options.episodes, 1), ("first-seed", options.first_seed, 0)):
        if value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}.")
    if options.envs is not None and options.envs < 1:
        raise UserError(f"--envs must be at least 1, got {options.envs}.")
    if options.task is not None:
        get_task(options.task)
    return options


def run(options: Options) -> Answer:
    """Play the episodes."""
    saved, shown = describe(options.folder), display(options.quiet)
    name = options.task or saved.task
    if name is None:
        raise UserError(f"{options.folder} does not say which task it was made for: give --task.")
    task = get_task(name)
    check_fits(saved, task, shown)
    task = task.with_episodes(saved.run.get("max_steps"), saved.run.get("ends_at_success"))
    outcomes = _play(options, saved, task, shown)
    value: dict[str, Any] = {
        "folder": options.folder,
        "policy": saved.kind,
        "task": task.name,
        "episodes": options.episodes,
        "first_seed": options.first_seed,
    }
    value |= {name: _rate(episodes) for name, episodes in outcomes.items()}
    if "refined" in outcomes:
        value["gain"] = paired_gain(outcomes["base"].success, outcomes["refined"].success)._asdict()
    value["outcomes"] = _rows(outcomes)
    return Answer(value, _table(value), options.json)


def _play(options: Options, saved: Saved, task: Task, shown: Display) -> dict[str, Episodes]:
    device = choose_device(options.device)
    base, refined = load(saved, device, task.action_size)
    policies = {"base": base} if refined is None else {"base": base, "refined": refined}
    # A policy that draws random numbers plays the same episodes only if as many environments draw together.
    run = saved.run
    n = options.envs or (min(run["envs"], run["eval_episodes"]) if run else min(16, options.episodes))
    how: dict[str, Any] = {"workers": processes(options.workers), "device": device, "display": shown}
    return api.episodes_of(policies, task, options.episodes, options.first_seed, n, **how)


def _rate(episodes: Episodes) -> dict[str, Any]:
    successes, n = int(episodes.success.sum()), len(episodes.success)
    return {
        "success_rate": episodes.rate,
        "ci95": wilson(successes, n),
        "successes": successes,
        "mean_steps": float(np.mean(episodes.env_steps)),
    }


def _rows(outcomes: dict[str, Episodes]) -> list[dict[str, Any]]:
    """One row an episode: its seed, and what each policy made of it."""
    first = outcomes["base"]
    return [
        {"seed": first.seed + i}
        | {
            name: {"success": bool(episodes.success[i]), "steps": int(episodes.env_steps[i])}
            for name, episodes in outcomes.items()
        }
        for i in range(len(first.success))
    ]


def _table(value: dict[str, Any]) -> Table:
    shown = {"base": value["policy"] if "refined" not in value else "base policy", "refined": "refined"}
    rows = [rate_row(shown[k], value[k]["success_rate"], value[k]["ci95"]) for k in shown if k in value]
    if "gain" in value:
        gain = value["gain"]
        rows.append(gain_row(gain["gain"], (gain["low"], gain["high"])))
        rows.append(("fixed / broken", f"{gain['fixed']} / {gain['broken']}   McNemar p = {gain['p_value']:.3g}"))
    lengths = " / ".join(f"{value[k]['mean_steps']:.1f}" for k in shown if k in value)
    rows.append(("mean steps", lengths))
    rows.append(("episodes", f"{value['episodes']}, seeds from {value['first_seed']}"))
    return facts_table(f"{value['task']}: {value['folder']}", rows)
