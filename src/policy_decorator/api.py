"""The Python interface: `decorate` a policy, or put `@policy_decorator(...)` on a function."""

import dataclasses
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import gymnasium as gym
import torch

from policy_decorator import snapshot
from policy_decorator.base_policies.checkpoint import save_policy
from policy_decorator.base_policies.imitate import Imitator
from policy_decorator.base_policies.places import absolute
from policy_decorator.chunks import chunk_of
from policy_decorator.config import RefineConfig, changed
from policy_decorator.demos.dataset import Demonstrations, check, joined
from policy_decorator.disk import to_json
from policy_decorator.envs import get_task
from policy_decorator.envs.task import Task
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError
from policy_decorator.evaluation import TEST, Episodes, run_episodes
from policy_decorator.experiments.presets import settings, unlisted
from policy_decorator.hardware import check_place, choose_device, device_of, place_of, resolved
from policy_decorator.limits import check_numbers
from policy_decorator.memory import AnyPolicy
from policy_decorator.progress import Bars, Display, Silent
from policy_decorator.refine import refine
from policy_decorator.refined import Refined, kind_of, load, saveable, to_device
from policy_decorator.reports.html import write_report
from policy_decorator.runlog import CHECKPOINT, RunFolder
from policy_decorator.showcase import film


def decorate(
    policy: Any,
    task: str,
    *,
    bound: float | Literal["auto", "tolerance"] | None = None,
    horizon: int | Literal["auto"] | None = None,
    total_steps: int | None = None,
    preset: str = "quick",
    method: str = RefineConfig.method,
    seed: int = 0,
    demos: Demonstrations | str | Path | Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    force: bool = False,
    **others: Any,
) -> Refined:
    """Refine `policy` on `task` by reinforcement learning from its sparse success signal.

    Args:
        policy: the folder of a saved policy; anything callable, (B, Do) -> (B, Da) or (Do,) -> (Da,), numpy or torch;
            a model of Stable-Baselines3, LeRobot or robomimic; a file (.onnx, .pt2, .pt, .pth); the address of a policy
            server, "ws://host:port"; or a `BasePolicy` or `StatefulPolicy`. It is only ever asked for actions.
        task: a name from `pidec list tasks`; or an environment of your own that is registered with Gymnasium,
            "gym/MODULE:ID".
        bound: alpha, the largest correction in every action dimension, of actions in [-1, 1] (paper Sec. 4.2).
        horizon: H, environment steps over which the residual is introduced (Fig. 4); 0: at once.
        total_steps: environment steps in all.
        preset: "quick", "fast", "ppo" or "paper" (`pidec list presets`): everything that is not given.
        method: how it is learned (`pidec list methods`).
        demos: demonstrations of the task, whose statistics standardise what the residual sees; of several files all.
        out: a new run folder for metrics, checkpoints and the report; None leaves nothing on disk.
        progress: show bars with an ETA on stderr.
        overwrite, resume, force: see `run`.
        others: any other setting by the name of its option (`pidec refine --help`): `device="cuda"`, `envs=32`,
            `workers=0`, `eval_every=5_000`, `batch_size=512`.

    Raises:
        UserError: unknown names, numbers out of range, wrong sizes, values that are not finite, a base that never
            succeeds, a full disk.
    """
    get_task(task)  # raises now what is wrong with its name
    horizon, total_steps = _whole(horizon), _whole(total_steps)
    kind = kind_of(policy)
    config = settings(preset, task, kind=kind, method=method, bound=bound, horizon=horizon, total_steps=total_steps)
    if (note := unlisted(preset, config, kind)) is not None:
        warnings.warn(note, stacklevel=2)
    if "device" in others:
        others["device"] = str(others["device"])  # of torch, too
    if isinstance(policy, str | Path):
        others.setdefault("policy", str(policy))
    config = changed(config, {"seed": seed, **others})
    how: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "force": force}
    return run(config, policy, demos=demos, out=out, display=Bars() if progress else None, **how)


def evaluate(
    policy: Any,
    task: str,
    *,
    episodes: int = 100,
    first_seed: int = TEST,
    envs: int = 16,
    workers: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Episodes:
    """Success of any policy that `decorate` takes, or of a refined one, on whole episodes of `task`.

    Before a run it says whether the policy does here what it does elsewhere; `wilson` of `policy_decorator.statistics`
    gives the interval. By default the episodes are those of a run's final comparison.

    Args:
        first_seed: of the first episode; the others follow.
        envs: environments stepped together.
        workers: processes among which they are shared out; 0: none but this one.

    Returns:
        `rate`, and `success` (episodes,) bool and `env_steps` (episodes,) one by one.

    Raises:
        UserError: an unknown task, a policy that answers wrongly.
    """
    if episodes < 1 or envs < 1:
        raise UserError(f"episodes and envs must be at least 1, got {episodes} and {envs}.")
    made, on = get_task(task), choose_device(device)
    base = load(policy, made.action_size, on)
    to_device(base, on)
    how: dict[str, Any] = {"workers": workers, "device": on, "display": Bars() if progress else Silent()}
    return episodes_of({"the policy": base}, made, episodes, first_seed, min(envs, episodes), **how)["the policy"]


def episodes_of(
    policies: Mapping[str, AnyPolicy],
    task: Task,
    episodes: int,
    seed: int,
    envs: int,
    *,
    workers: int,
    device: torch.device,
    display: Display,
) -> dict[str, Episodes]:
    """`run_episodes` of each on `envs` environments, whose simulators `workers` processes share; they look alike."""
    first = next(iter(policies.values()))
    how: dict[str, Any] = {"context": first.context, "chunk": chunk_of(first), "workers": workers, "device": device}
    outcomes = {}
    with closing(make_vector(task, envs, **how)) as env:
        for name, policy in policies.items():
            with display.stage(f"evaluating {name}", episodes) as update:
                outcomes[name] = run_episodes(env, policy, episodes, seed, update)
    return outcomes


def make_env(task: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """An environment of `task` as policies see it, with its time limit.

    Its observation is a vector, or a dict of `state` and pictures, its actions are in [-1, 1]. A refined policy acts in
    it as in its run: `action = refined.act(obs)`. Raises UserError: an unknown task.
    """
    made = get_task(task)
    return gym.wrappers.TimeLimit(made.make_env(render_mode), made.max_steps)


def policy_decorator(task: str, **options: Any) -> Callable[[Any], Refined]:
    """`decorate` as a decorator: the function is refined when it is defined, and its name then is the refined policy.

    @policy_decorator("metaworld/peg-insert-side", bound=0.6, total_steps=40_000)
    def act(obs): ...
    """
    if not isinstance(task, str):
        raise UserError('@policy_decorator needs the name of the task: @policy_decorator("metaworld/peg-insert-side").')
    return lambda policy: decorate(policy, task, **options)


def run(
    config: RefineConfig,
    policy: Any,
    *,
    demos: Demonstrations | str | Path | Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    display: Display | None = None,
    overwrite: bool = False,
    resume: bool = False,
    force: bool = False,
) -> Refined:
    """`decorate` with every setting given.

    Args:
        overwrite: move a run that `out` already holds aside and start anew.
        resume: go on with the run in `out` from its last checkpoint, as if it had not been interrupted.
        force: refine even a base that never succeeds.

    Raises:
        UserError: as `decorate`; a run to resume that was started with other settings.
    """
    task, display = get_task(config.task), display or Silent()
    check_numbers(config)
    choose_device(config.device)
    config = dataclasses.replace(config, policy=absolute(config.policy))
    if not resume:
        config = resolved(config, display)
    base = load(policy, task.action_size, device_of(config))
    to_device(base, device_of(config))
    demos = None if demos is None else gathered(demos)
    if demos is not None:
        check(demos, task)
    if not resume:
        folder, state = None if out is None else RunFolder.create(out, config, overwrite=overwrite), None
    else:
        config, folder, state = _resume(config, out)
    with folder or nullcontext(), _removed_unless_begun(None if resume else folder):
        if folder is not None and not resume:
            _keep_inputs(folder.path, config, base, demos)
        elif folder is not None and demos is None and (folder.path / "demos.h5").exists():
            demos = Demonstrations.load(folder.path / "demos.h5")
        refined, comparison = refine(config, base, folder, demos=demos, display=display, resume=state, force=force)
        if folder is not None:
            film(task, folder.path, comparison, display)
            write_report(folder.path)
    return refined


def gathered(demos: Demonstrations | str | Path | Sequence[str | Path]) -> Demonstrations:
    """From one file or several.

    Raises:
        UserError: a file that cannot be read or is named twice, other tasks or sizes than the first one's.
    """
    if isinstance(demos, Demonstrations):
        return demos
    paths = [Path(x) for x in ((demos,) if isinstance(demos, str | Path) else demos)]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"A file of demonstrations is named twice: {', '.join(map(str, paths))}.")
    return joined([Demonstrations.load(path) for path in paths])


@contextmanager
def _removed_unless_begun(folder: RunFolder | None) -> Iterator[None]:
    """Removes a new run that failed before it began, and holds nothing but its settings."""
    try:
        yield
    except Exception:
        if folder is not None and not folder.has_begun:
            folder.close()
            shutil.rmtree(folder.path)
        raise


def _whole(number: Any) -> Any:
    """1e6 as the whole number that it means."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _keep_inputs(folder: Path, config: RefineConfig, base: AnyPolicy, demos: Demonstrations | None) -> None:
    """What resuming the run needs, so that it does not depend on files elsewhere."""
    if saveable(base):
        save_policy(cast(Imitator, base), folder / "base", details={"task": config.task})
    if demos is not None:
        demos.save(folder / "demos.h5")


def _resume(config: RefineConfig, out: str | Path | None) -> tuple[RefineConfig, RunFolder, dict[str, Any]]:
    """The run in `out`, which is left as it is, and its checkpoint. Raises UserError: another run, or none."""
    if out is None:
        raise UserError("Resuming needs the run folder: give --out (out=...).")
    before = RunFolder.open(out).config()
    if config.learn.nets.precision == "auto":  # as it was decided then
        nets = dataclasses.replace(config.learn.nets, precision=before["learn"]["nets"]["precision"])
        config = dataclasses.replace(config, learn=dataclasses.replace(config.learn, nets=nets))
    now = to_json(config)
    before["train"]["total_steps"] = now["train"]["total_steps"]  # a longer budget is no other run
    before["policy"] = now["policy"]  # nor is a base that was moved
    different = sorted(key for key in now if now[key] != before.get(key))
    if different:
        raise UserError(f"{out} was started with other settings of {', '.join(different)}: resume with its own.")
    state = snapshot.read(Path(out) / CHECKPOINT, device_of(config))
    if "place" in state:
        check_place(state["place"], place_of(config))
    done = state["counts"]["decisions"]
    if done > config.train.total_steps + config.envs:  # more than the replay of such a run would hold
        raise UserError(f"{out} has come to {done:,} decisions: resume it with a larger budget (--total-steps).")
    return config, RunFolder.hold(out), state
