"""Steps in two halves, where the environments can and where they cannot."""

import torch

from policy_decorator.envs.toy import TASKS, Reach
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.envs.workers import Workers
from policy_decorator.stepping import Apart, send


def test_environments_of_this_process_have_stepped_when_they_were_sent() -> None:
    env, other = Reach(3), Reach(3)
    env.reset(0)
    other.reset(0)
    answer = send(env, torch.full((3, 1, 2), 0.3))
    assert not isinstance(env, Apart)
    assert env.t.tolist() == [1, 1, 1]
    assert all(torch.equal(x, y) for x, y in zip(answer(), other.step(torch.full((3, 1, 2), 0.3)), strict=True))
    assert env.t.tolist() == [1, 1, 1]  # once


def test_simulators_in_processes_step_while_nobody_waits_for_them() -> None:
    task = TASKS["toy/reach-gym"]
    env, other = SimulatorVector(task, 3, workers=2), SimulatorVector(task, 3)
    try:
        env.reset(0)
        other.reset(0)
        for k in range(30):
            action = torch.full((3, 1, 2), 0.1 * k - 1)
            answer = send(env, action)
            assert isinstance(env.envs, Workers)
            assert all(pipe.poll(60) for pipe in env.envs.pipes)  # the answers come without being asked for
            assert all(torch.equal(x, y) for x, y in zip(answer(), other.step(action), strict=True))
    finally:
        env.close()
        other.close()
