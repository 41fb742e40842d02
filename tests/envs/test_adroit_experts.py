"""The scripted experts of hammer and relocate."""

from typing import Any

import numpy as np
import pytest

from policy_decorator.envs import TASKS
from policy_decorator.envs.adroit_experts import EXPERTS, _between


@pytest.mark.parametrize("name", EXPERTS)
def test_they_succeed_by_hand_and_tool(name: str) -> None:
    pytest.importorskip("gymnasium_robotics", reason="gymnasium_robotics is not installed")
    task = TASKS[f"adroit/{name}"]
    assert task.make_expert is not None
    env = task.make_env(None)
    data: Any = env.unwrapped.data  # pyright: ignore[reportAttributeAccessIssue]
    successes = 0
    for seed in range(6):
        act = task.make_expert()
        obs, _ = env.reset(seed=seed)
        held, success = 0.0, False
        for _ in range(task.max_steps):
            action = act(obs)
            assert action.shape == (task.action_size,)
            assert np.abs(action).max() <= 1
            obs, _, _, _, info = env.step(action)
            held, success = max(held, float(data.body("Object").xpos[2])), info["success"]
            if success:
                break
        successes += success
        assert held > 0.08  # hammer or ball off the table, on which it lies at 0.035
    assert successes >= 5
    env.close()


def test_keys_are_gone_to_held_and_the_last_two_repeated() -> None:
    keys = [np.full(2, value) for value in (0.0, 1.0, -1.0, 0.5)]
    path = [float(_between(keys, (2, 10, 4, 5), time)[0]) for time in range(30)]
    assert path[:2] == [0, 0]
    np.testing.assert_allclose(path[2:9], np.arange(1, 8) / 7, rtol=1e-6)  # 0.7 of ten steps
    assert path[9:12] == [1, 1, 1]
    assert path[15] == -1
    assert path[19:21] == [0.5, 0.5]
    np.testing.assert_allclose(path[21], 0.5 - 1.5 / 2.8, rtol=1e-6)  # back, from where the blow ended
    assert path[24] == -1
    assert path[29] == 0.5
