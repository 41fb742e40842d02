"""`pidec demos TASK`: demonstrations recorded in simulation, or read from a published file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch, Task, check_out, display, processes, task_first
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.errors import UserError
from policy_decorator.progress import Display

if TYPE_CHECKING:
    import numpy as np

    from policy_decorator import envs
    from policy_decorator.demos.dataset import Demonstrations

EPISODES = 25
FILES = ("from_dapg", "from_d4rl", "from_maniskill", "from_minari", "from_robomimic", "from_replay")
"""The options that read demonstrations instead of recording them."""
ABOUT = """Record demonstrations of a task in simulation (by its scripted expert, a saved policy or a published \
expert), or read them from a file of others. Only successful episodes are kept."""


@dataclass(frozen=True)
class Options:
    """Options of `pidec demos`."""

    task: Task
    """Name of the task (pidec list tasks)."""
    out: Path | None = None
    """HDF5 file to write; None: named after the task, here."""
    episodes: int | None = None
    """Episodes to keep: 25 are recorded where it is not given, and files are read whole."""
    noise: float = 0.0
    """Standard deviation added to the recorded actions, of actions in [-1, 1]."""
    seed: int = 0
    """Layouts and noise; no seed shares an episode with training or evaluation."""
    keep_failures: Switch = False
    """Keep every episode, not only the successful ones."""
    max_attempts: int | None = None
    """Episodes tried at most; None: ten per episode wanted."""
    from_policy: Path | None = None
    """Record this policy: the folder of a base policy, a refined one, or a run."""
    from_expert_npz: Path | None = None
    """Record this expert: an .npz file with the weights of a published Adroit expert."""
    from_dapg: Path | None = None
    """Read this file: a demonstration pickle of DAPG, opened with everything but arrays refused."""
    from_d4rl: Path | None = None
    """Read this file: HDF5 of D4RL's Adroit datasets (human, cloned, expert)."""
    from_maniskill: Path | None = None
    """Read this file: a trajectory of ManiSkill (.h5, with its .json beside it)."""
    from_minari: str | None = None
    """Read this Minari dataset: its id or its folder."""
    from_robomimic: Path | None = None
    """Read this file: a low_dim HDF5 file of robomimic."""
    from_replay: Path | None = None
    """For a task with pictures: read these demonstrations of its state and play them again before the cameras."""
    mask: str | None = None
    """Only the demonstrations under this mask of a robomimic file: train, valid, ..."""
    workers: int | None = None
    """Processes that plan, for tasks of ManiSkill; 0: none but this one; None: one per core."""
    download: Switch = False
    """Let Minari download the dataset where it is missing."""
    overwrite: Switch = False
    """Replace the file where it exists."""
    quiet: Switch = False
    """No progress on stderr."""
    json: Switch = False
    """Print JSON instead of a table."""


def parse(args: list[str]) -> Options:
    """Raises UserError for an unknown task, options that contradict one another and a file that is in the way."""
    from policy_decorator.envs import get_task

    options = parse_options(Options, "demos", ABOUT, task_first(args))
    get_task(options.task)
    _check_options(options)
    out = options.out or Path(options.task.replace("/", "-").replace(":", "-") + ".h5")
    check_out(out, options.overwrite)
    return replace(options, out=out)


def run(options: Options) -> Answer:
    """Record or read, check and save."""
    from policy_decorator.cli.show import demos_table
    from policy_decorator.demos.dataset import check
    from policy_decorator.envs import get_task

    task = get_task(options.task)
    shown = display(options.quiet)
    demos = _read(options, task, shown) or _record(options, task, shown)
    check(demos, task)
    file = cast(Path, options.out)
    demos.save(file)
    about = demos.describe()
    return Answer(about | {"file": file}, demos_table(about, file), options.json)


def _check_options(o: Options) -> None:
    options = ("from_policy", "from_expert_npz", *FILES)
    sources = [_flag(name) for name in options if getattr(o, name) is not None]
    if len(sources) > 1:
        raise UserError(f"{' and '.join(sources)} contradict each other: demonstrations have one source.")
    if o.download and o.from_minari is None:
        raise UserError("--download is for Minari datasets: give --from-minari ID, or leave it out.")
    if o.mask is not None and o.from_robomimic is None:
        raise UserError("--mask is for robomimic files: give --from-robomimic FILE, or leave it out.")
    if not set(sources) & {_flag(name) for name in FILES}:
        return
    recording = {"noise": 0.0, "seed": 0, "keep_failures": False, "max_attempts": None, "workers": None}
    idle = [_flag(name) for name, unset in recording.items() if getattr(o, name) != unset]
    if idle:
        raise UserError(f"{', '.join(idle)} is about recording, but {sources[0]} reads a file: leave it out.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _read(o: Options, task: "envs.Task", shown: Display) -> "Demonstrations | None":
    from policy_decorator.demos import d4rl, dapg, dataset, maniskill_h5, minari_reader, robomimic

    readers: dict[str, Callable[..., Demonstrations]] = {
        "from_dapg": dapg.read_dapg,
        "from_d4rl": d4rl.read_d4rl,
        "from_maniskill": maniskill_h5.read_maniskill,
        "from_minari": partial(minari_reader.read_minari, download=o.download),
        "from_robomimic": partial(robomimic.read_robomimic, mask=o.mask),
        "from_replay": lambda path, task: _seen(dataset.Demonstrations.load(path), task, shown),
    }
    for name in FILES:
        if (given := getattr(o, name)) is not None:
            demos = readers[name](given, task)
            return demos if o.episodes is None else demos.first(o.episodes)
    return None


def _record(o: Options, task: "envs.Task", shown: Display) -> "Demonstrations":
    from policy_decorator.demos.motion_planning import has_planner
    from policy_decorator.demos.record import record, record_expert, record_policy
    from policy_decorator.evaluation import DEMOS
    from policy_decorator.experiments.bases import DEMOS_PER_SEED

    if task.flat is not None and o.from_policy is None:  # experts act on the state
        return _seen(_record(o, task.flat, shown), task, shown)
    episodes = EPISODES if o.episodes is None else o.episodes
    how: dict[str, Any] = {"noise": o.noise, "only_successes": not o.keep_failures}
    how |= {"seed": DEMOS + o.seed * DEMOS_PER_SEED, "max_attempts": o.max_attempts}
    if o.seed < 0:
        raise UserError(f"--seed must be at least 0, got {o.seed}.")
    with shown.stage("recording demonstrations", episodes) as update:
        how["progress"] = update
        if o.from_policy is not None:
            import torch

            from policy_decorator.cli.saved import check_fits, describe, load

            saved = describe(o.from_policy)
            check_fits(saved, task, shown)
            base, refined = load(saved, torch.device("cpu"), task.action_size)
            return record_policy(task, refined or base, episodes, source=f"policy {o.from_policy}", **how)
        if o.from_expert_npz is not None:
            act = _expert(o.from_expert_npz, task)
            return record(task, lambda: act, episodes, source=f"expert {o.from_expert_npz.name}", **how)
        if has_planner(task):
            return _planned(task, episodes, o, how)
        return record_expert(task, episodes, **how)


def _seen(demos: "Demonstrations", task: "envs.Task", shown: Display) -> "Demonstrations":
    from policy_decorator.demos.replayed import with_pictures

    with shown.stage("playing again, before the cameras", demos.episodes) as update:
        return with_pictures(demos, task, update)


def _planned(task: "envs.Task", episodes: int, o: Options, how: dict[str, Any]) -> "Demonstrations":
    from policy_decorator.demos.motion_planning import record_planned

    if o.noise or o.keep_failures:
        raise UserError("--noise and --keep-failures are not for motion planning, which plans without either.")
    known = {name: how[name] for name in ("seed", "max_attempts", "progress")}
    return record_planned(task, episodes, processes=processes(o.workers), **known)


def _expert(path: Path, task: "envs.Task") -> "Callable[[np.ndarray], np.ndarray]":
    import numpy as np

    from policy_decorator.demos.expert_npz import read_expert_npz

    act = read_expert_npz(path)
    try:
        answer = act(np.zeros(task.obs_size, np.float32))
    except ValueError as error:
        raise UserError(f"The expert in {path} is not one of {task.name}: {error}") from None
    if answer.shape != (task.action_size,):
        raise UserError(f"The expert in {path} gives {answer.size} actions, {task.name} has {task.action_size}.")
    return act
