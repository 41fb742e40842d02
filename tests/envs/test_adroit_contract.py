"""What the loop relies on, for the four Adroit tasks: seeds, time-outs, success, rows alone and together, processes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policy_decorator.envs import TASKS
from policy_decorator.envs.task import Task
from policy_decorator.envs.vector import SimulatorVector

pytest.importorskip("gymnasium_robotics", reason="gymnasium_robotics is not installed")

N, LIMIT = 3, 8


@pytest.fixture(scope="module", params=("door", "pen", "hammer", "relocate"))
def task(request: pytest.FixtureRequest) -> Task:
    return replace(TASKS[f"adroit/{request.param}"], max_steps=LIMIT)


@pytest.fixture(scope="module")
def env(task: Task) -> Iterator[SimulatorVector]:
    env = SimulatorVector(task, N, context=2)
    yield env
    env.close()


def actions(task: Task, steps: int) -> Tensor:
    """(steps, N, 1, Da)"""
    return torch.rand(steps, N, 1, task.action_size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def alone(task: Task, seed: int, chosen: np.ndarray) -> np.ndarray:
    """Observations (L + 1, Do) of one environment."""
    env = task.make_env(None)
    obs, _ = env.reset(seed=seed)
    seen = np.stack([obs, *(env.step(action)[0] for action in chosen)])
    env.close()
    return seen


def test_rows_are_single_environments_and_time_outs_are_truncations(task: Task, env: SimulatorVector) -> None:
    chosen = actions(task, LIMIT)
    single = np.stack([alone(task, 5 + i, chosen[:, i, 0].numpy()) for i in range(N)], axis=1)  # (L + 1, N, Do)
    window = env.reset(5)
    np.testing.assert_array_equal(window, single[[0, 0]].transpose(1, 0, 2))
    for t in range(LIMIT):
        step = env.step(chosen[t])
        np.testing.assert_array_equal(step.final_window, single[[t, t + 1]].transpose(1, 0, 2))
        assert step.done.tolist() == [t + 1 == LIMIT] * N
        assert not step.terminated.any()
        assert not step.success.any()
        assert step.episode.tolist() == [5, 6, 7]
    starts = [alone(task, 5 + N + i, np.zeros((0, task.action_size)))[0] for i in range(N)]
    np.testing.assert_array_equal(step.window, np.stack([starts, starts], axis=1))


def succeed(name: str, simulator: Any) -> None:
    """Put the simulator where the task is solved."""
    import mujoco

    data, model = simulator.data, simulator.model
    if name in ("adroit/door", "adroit/hammer"):
        joint = {"adroit/door": "door_hinge", "adroit/hammer": "nail_dir"}[name]
        data.joint(joint).qpos[:] = model.joint(joint).range[1]
    elif name == "adroit/relocate":
        for k, axis in enumerate("xyz"):
            data.joint(f"OBJT{axis}").qpos[:] += data.site("target").xpos[k] - data.body("Object").xpos[k]
    else:
        model.body_quat[simulator.target_obj_body_id] = model.body("Object").quat
    mujoco.mj_forward(model, data)


def test_success_ends_an_episode_and_the_next_begins(task: Task, env: SimulatorVector) -> None:
    env.reset(20)
    simulators: Any = env.envs.envs.envs  # pyright: ignore[reportAttributeAccessIssue]
    succeed(task.name, simulators[1].unwrapped)
    step = env.step(torch.zeros(N, 1, task.action_size))
    for told in (step.success, step.terminated, step.done):
        assert told.tolist() == [False, True, False]
    np.testing.assert_array_equal(step.window[[0, 2]], step.final_window[[0, 2]])
    begun = alone(task, 20 + N, np.zeros((0, task.action_size)))[0]
    np.testing.assert_array_equal(step.window[1], np.stack([begun, begun]))
    assert env.step(torch.zeros(N, 1, task.action_size)).episode.tolist() == [20, 20 + N, 22]
    again = env.reset(20)  # the state that was forced leaves nothing behind
    np.testing.assert_array_equal(again[1, -1], alone(task, 21, np.zeros((0, task.action_size)))[0])


@pytest.mark.slow
def test_processes_do_the_same_and_are_freed(task: Task, env: SimulatorVector) -> None:
    chosen = actions(task, LIMIT)
    spread = SimulatorVector(task, N, context=2, workers=2)
    processes = spread.envs.processes  # pyright: ignore[reportAttributeAccessIssue]
    try:
        np.testing.assert_array_equal(spread.reset(5), env.reset(5))
        for t in range(LIMIT):
            for here, there in zip(env.step(chosen[t]), spread.step(chosen[t]), strict=True):
                np.testing.assert_array_equal(there, here)
    finally:
        spread.close()
    assert not any(process.is_alive() for process in processes)
