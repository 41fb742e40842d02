"""Demonstrations by ManiSkill's own motion planning, converted by its own `replay_trajectory`.

Plans move joints; the paper's policies move the gripper. So every plan is converted, and what was converted is then
executed in the task itself from the same seed: only what succeeds there is kept.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.episode import Episode, gather
from policy_decorator.demos.maniskill_h5 import trajectories
from policy_decorator.demos.record import ATTEMPTS_PER_EPISODE, Progress
from policy_decorator.envs import get_task
from policy_decorator.envs.maniskill import SIMULATED, simulated
from policy_decorator.envs.maniskill.simulator import load
from policy_decorator.envs.task import Task
from policy_decorator.envs.workers import process_context, without_main
from policy_decorator.errors import UserError

BATCH = 10
"""Most seeds per call of a process: its simulators are made anew for each call, which takes two seconds."""


@dataclass(frozen=True)
class Planned:
    """What became of some seeds, in their order."""

    seeds: int
    solved: int
    """Plans that ended in success."""
    converted: int
    """Of those, plans that still did so with the other controller."""
    episodes: list[Episode]
    """Of those, episodes that succeed in the task."""


def has_planner(task: Task) -> bool:
    """Whether ManiSkill can plan this task."""
    return any(task.name == f"maniskill/{name}" and s.planned for name, s in SIMULATED.items())


def record_planned(
    task: Task,
    episodes: int,
    *,
    seed: int,
    processes: int = 1,
    max_attempts: int | None = None,
    progress: Progress | None = None,
) -> Demonstrations:
    """The first `episodes` seeds from `seed` on for which a plan succeeds in `task`; `details` counts the others.

    The result is the same for any number of processes. Raises UserError: no planner for this task, a numpy that
    crashes it, attempts run out (ten per episode wanted), a planner that crashed; MissingExtra without ManiSkill.
    """
    _check(task)
    if episodes < 1 or seed < 0:
        raise UserError(f"Cannot plan {episodes} episodes from seed {seed} on: at least one, and a seed from 0 on.")
    most = max_attempts or ATTEMPTS_PER_EPISODE * episodes
    kept: list[Episode] = []
    counts = dict.fromkeys(("attempts", "plans_failed", "conversions_failed", "executions_failed"), 0)
    size, end = min(BATCH, episodes), seed + most
    batches = [range(s, min(s + size, end)) for s in range(seed, end, size)]
    for batch in _in_processes(task, batches, processes):
        kept += batch.episodes
        counts["attempts"] += batch.seeds
        counts["plans_failed"] += batch.seeds - batch.solved
        counts["conversions_failed"] += batch.solved - batch.converted
        counts["executions_failed"] += batch.converted - len(batch.episodes)
        if progress is not None:
            progress(min(len(kept), episodes), episodes)
        if len(kept) >= episodes:
            break
    else:
        raise UserError(f"Only {len(kept)} of {episodes} demonstrations of {task.name} succeeded in {most} attempts.")
    return gather(task.name, kept[:episodes], "ManiSkill's motion planning", {"seed": seed, **counts})


def _check(task: Task) -> None:
    if not has_planner(task):
        raise UserError(f"ManiSkill has no motion planning for {task.name}. {task.demos}")
    if int(np.__version__.split(".")[0]) >= 2:
        raise UserError(
            "ManiSkill's motion planner (mplib 0.1.1) crashes with numpy 2. For recording demonstrations: "
            'pip install "numpy<2"; the files can then be used with any numpy.'
        )
    load("mani_skill.envs")


def _in_processes(task: Task, batches: Sequence[range], processes: int) -> Iterator[Planned]:
    work = partial(plan, task.name)
    if processes <= 1:
        yield from map(work, batches)
        return
    pool = ProcessPoolExecutor(processes, mp_context=process_context())
    try:
        with without_main():  # they are started here
            planned = pool.map(work, batches)
        yield from planned
    except BrokenProcessPool as error:
        raise UserError("ManiSkill's motion planner ended its process. Try it alone: --workers 0.") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def plan(name: str, seeds: range) -> Planned:
    """Plan, convert and execute the task `name` for `seeds`."""
    task = get_task(name)
    with tempfile.TemporaryDirectory() as folder:
        plans, solved = _plan(task, seeds, Path(folder))
        if not solved:
            return Planned(len(seeds), 0, 0, [])
        converted = _convert(task, plans)
        actions = {
            about["episode_seed"]: np.asarray(group["actions"]) for about, group in trajectories(converted, task)
        }
    executed = _execute(task, actions)
    return Planned(len(seeds), solved, len(actions), executed)


def _plan(task: Task, seeds: range, folder: Path) -> tuple[Path, int]:
    """The file of the plans that succeed, and how many they are."""
    load("mani_skill.envs")
    import gymnasium as gym
    from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS
    from mani_skill.utils.wrappers.record import RecordEpisode

    env_id = simulated(task).planned
    assert env_id is not None
    options: dict[str, Any] = {"obs_mode": "none", "control_mode": "pd_joint_pos", "reward_mode": "sparse"}
    env: Any = gym.make(env_id, sim_backend="physx_cpu", render_backend="none", **options)
    env = RecordEpisode(
        env,
        str(folder),
        trajectory_name="plans",
        save_video=False,
        record_reward=False,
        save_on_reset=False,
        source_type="motionplanning",
        source_desc="ManiSkill's own solution",
    )
    solved = 0
    for seed in seeds:
        with _silenced():
            try:
                outcome = MP_SOLUTIONS[env_id](env, seed=seed, debug=False, vis=False)
            except Exception:  # the planner raises many kinds where it finds no way
                outcome = -1
        success = outcome != -1 and bool(outcome[-1]["success"])
        env.flush_trajectory(save=success)
        solved += success
    env.close()
    return folder / "plans.h5", solved


def _convert(task: Task, plans: Path) -> Path:
    """The file of the plans as actions of the task's controller, where they still succeed."""
    from mani_skill.trajectory import replay_trajectory

    mode = simulated(task).control_mode
    with _silenced():
        replay_trajectory.main(
            replay_trajectory.Args(
                traj_path=str(plans),
                sim_backend="physx_cpu",
                obs_mode="state",
                target_control_mode=mode,
                save_traj=True,
                reward_mode="sparse",
            )
        )
    return plans.with_name(f"plans.state.{mode}.physx_cpu.h5")


def _execute(task: Task, actions: dict[int, np.ndarray]) -> list[Episode]:
    """The episodes that `actions` by seed solve in the task, up to their first success."""
    solved = []
    env = task.make_env(None)
    try:
        for seed in sorted(actions):
            obs, _ = env.reset(seed=seed)
            seen = []
            for t, action in enumerate(actions[seed][: task.max_steps], start=1):
                seen.append(obs)
                obs, _, _, _, info = env.step(action)
                if info["success"]:
                    solved.append(Episode(np.stack(seen), actions[seed][:t], np.arange(t) == t - 1, seed))
                    break
    finally:
        env.close()
    return solved


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Bars and notices of ManiSkill's tools: this package shows its own."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
