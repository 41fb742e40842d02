"""`pidec play TASK --out FILE.mp4`: a film of random actions, demonstrations, the scripted expert or a policy."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table

from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch, check_out, display, task_first
from policy_decorator.cli.options import Task as TaskName
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.cli.saved import check_fits, describe, load
from policy_decorator.cli.show import facts_table
from policy_decorator.demos.dataset import Demonstrations, check
from policy_decorator.demos.record import record, record_expert, record_policy
from policy_decorator.disk import disk_errors
from policy_decorator.envs import get_task
from policy_decorator.envs.rendering import SAME_START, render_rollout, starts_apart
from policy_decorator.envs.task import Expert, Task
from policy_decorator.errors import UserError
from policy_decorator.evaluation import TEST
from policy_decorator.progress import Display
from policy_decorator.reports.video import Scene, write_scenes

FPS = 25
"""Frames a second that are aimed at: a task of 100 Hz is drawn at every fourth step, one of 20 Hz at every step."""

ABOUT = """Write a film of whole episodes of a task: of random actions, or of what --demos, --policy or --expert \
names. Episodes are played first and then drawn, the same actions from the same seeds."""


class Episode(NamedTuple):
    """What is to be drawn."""

    label: str
    seed: int
    actions: np.ndarray  # (L, Da)
    success: bool


@dataclass(frozen=True)
class Options:
    """Options of `pidec play`."""

    task: TaskName
    """Name of the task (pidec list tasks)."""
    out: Path
    """The .mp4 file to write."""
    demos: Path | None = None
    """Play demonstrations again, from their seeds: an HDF5 file of pidec demos."""
    episode: int = 0
    """With --demos: the first episode to play, counted from 0."""
    policy: str | None = None
    """Play this policy: the folder of a base policy, a refined one, or a run; a file, or the address of a server."""
    expert: Switch = False
    """Play the task's scripted expert."""
    episodes: int = 1
    """Episodes, one after another."""
    seed: int = TEST
    """Seed of the first episode, the others follow: by default those of pidec evaluate. Not with --demos."""
    fps: float | None = None
    """Frames a second of the film, fewer are slow motion; None: as fast as life."""
    overwrite: Switch = False
    """Replace the film where it exists."""
    quiet: Switch = False
    """No progress on stderr."""
    json: Switch = False
    """Print JSON instead of a table."""


def parse(args: list[str]) -> Options:
    """Raises UserError for an unknown task, options that contradict one another and a file that is in the way."""
    options = parse_options(Options, "play", ABOUT, task_first(args))
    task = get_task(options.task)
    if not task.renders:
        raise UserError(f"{task.name} draws no pictures: choose a task of a simulator (pidec list tasks).")
    _check_options(options)
    if options.out.suffix != ".mp4":
        raise UserError(f"--out needs a file that ends in .mp4, not {options.out}.")
    check_out(options.out, options.overwrite)
    return options


def run(options: Options) -> Answer:
    """Play without pictures, then draw the same actions from the same seeds."""
    task, shown = get_task(options.task), display(options.quiet)
    task.make_env("rgb_array").close()  # where nothing can be drawn, its error comes before the work
    source, episodes = _demonstrations(options, task) if options.demos else _rollouts(options, task, shown)
    stride = max(1, round(task.control_hz / FPS))  # environment steps per frame
    fps = options.fps or task.control_hz / stride
    with disk_errors(options.out):
        options.out.parent.mkdir(parents=True, exist_ok=True)
    write_scenes(_scenes(task, episodes, stride, shown), options.out, fps)
    told = [{"seed": e.seed, "steps": len(e.actions), "success": e.success} for e in episodes]
    value = {"task": task.name, "source": source, "episodes": told, "fps": fps, "file": options.out}
    return Answer(value, _table(value), options.json)


def _check_options(o: Options) -> None:
    sources = {"--demos": o.demos is not None, "--policy": o.policy is not None, "--expert": o.expert}
    given = [name for name, there in sources.items() if there]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} contradict each other: a film shows one source.")
    if o.demos is not None and o.seed != TEST:
        raise UserError("--seed does not go with --demos, whose seeds are in the file: choose with --episode.")
    if o.demos is None and o.episode != 0:
        raise UserError("--episode chooses among --demos: give --demos FILE, or --seed instead.")
    for name, number, least in (("episode", o.episode, 0), ("episodes", o.episodes, 1), ("seed", o.seed, 0)):
        if number < least:
            raise UserError(f"--{name} must be at least {least}, got {number}.")
    if o.fps is not None and not 0 < o.fps <= 1000:
        raise UserError(f"--fps must be above 0 and at most 1000, got {o.fps}.")


def _rollouts(o: Options, task: Task, shown: Display) -> tuple[str, list[Episode]]:
    """Whole episodes on the seeds that were asked for, up to success, failure or the time limit."""
    with shown.stage("playing", o.episodes) as update:
        how: dict[str, Any] = {"seed": o.seed, "only_successes": False, "progress": update}
        if o.policy is not None:
            saved = describe(o.policy)
            check_fits(saved, task, shown)
            task = task.with_episodes(saved.run.get("max_steps"))
            base, refined = load(saved, torch.device("cpu"), task.action_size)
            played = record_policy(task, refined or base, o.episodes, source=f"policy {o.policy}", **how)
        elif o.expert:
            played = record_expert(task, o.episodes, **how)
        else:
            rng = np.random.default_rng(o.seed)
            played = record(task, lambda: _at_random(task, rng), o.episodes, source="random actions", **how)
    label = "policy" if o.policy else played.source
    rows = zip(played.seeds, played.split(), played.episode_success, strict=True)
    return played.source, [Episode(f"{label}, seed {k}", int(k), actions, bool(s)) for k, (_, actions), s in rows]


def _at_random(task: Task, rng: np.random.Generator) -> Expert:
    return lambda _: rng.uniform(-1, 1, task.action_size).astype(np.float32)


def _demonstrations(o: Options, task: Task) -> tuple[str, list[Episode]]:
    """The chosen episodes, brought back from their seeds; success is that of the replay."""
    assert o.demos is not None
    demos = Demonstrations.load(o.demos)
    check(demos, task)
    chosen = range(o.episode, o.episode + o.episodes)
    if chosen[-1] >= demos.episodes:
        raise UserError(f"{o.demos} has no episode {chosen[-1]}: it holds {demos.episodes}, counted from 0.")
    if (demos.seeds[chosen] < 0).any():
        raise UserError(
            f"The seeds of {o.demos} ({demos.source}) are unknown, so that its episodes cannot be brought back. "
            f"Demonstrations that are recorded here have them: pidec demos {task.name}"
        )
    sequences, env = list(demos.split()), task.make_env(None)
    try:
        return demos.source, [
            Episode(
                f"demonstration {k}",
                int(demos.seeds[k]),
                sequences[k][1],
                _replay(env, int(demos.seeds[k]), *sequences[k]),
            )
            for k in chosen
        ]
    finally:
        env.close()


def _replay(env: Any, seed: int, seen: Any, actions: np.ndarray) -> bool:
    """Whether the actions (L, Da) succeed again from `seed`, which must begin as what was seen, L frames, does."""
    before = seen["state"] if isinstance(seen, dict) else seen
    apart = starts_apart(env, seed, before[0])
    if not apart <= SAME_START:
        raise UserError(
            f"Seed {seed} begins elsewhere than the demonstration did (observations differ by up to {apart:.3g}): "
            "it was recorded in another version of the task, or something else than the seed decided its start. "
            "Record it again."
        )
    return any(bool(env.step(action)[4]["success"]) for action in actions)


def _scenes(task: Task, episodes: list[Episode], stride: int, shown: Display) -> Iterator[Scene]:
    """The episodes, drawn one by one."""
    with shown.stage("drawing", len(episodes)) as update:
        for done, (label, seed, actions, success) in enumerate(episodes, start=1):
            pictures = 1 + max(1, round(len(actions) / stride))
            yield Scene(render_rollout(task, actions, seed, pictures), label, success)
            update(done)


def _table(value: dict[str, Any]) -> Table:
    words = {True: "success", False: "failed"}
    rows = [("source", value["source"])]
    rows += [("seed", f"{e['seed']}: {words[e['success']]}, {e['steps']} steps") for e in value["episodes"]]
    rows += [("frames a second", f"{value['fps']:.3g}"), ("file", str(value["file"]))]
    return facts_table(f"film of {value['task']}", rows)
