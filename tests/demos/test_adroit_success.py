"""Success told from observations and rewards is success as the simulators of the four Adroit tasks tell it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from adroit_play import NAMES, expert, make_dense, play, random

from policy_decorator.demos.adroit_success import RULES, derive, rule_for, words
from policy_decorator.envs import TASKS


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def dense(name: str) -> Iterator[Any]:
    env = make_dense(name)
    yield env
    env.close()


def test_episodes_of_experts_and_of_chance(name: str, dense: Any) -> None:
    task = TASKS[f"adroit/{name}"]
    rule = rule_for(task)
    assert rule is not None
    seen = []
    for seed, act in ((0, expert(task)), (1, expert(task)), (2, random(task))):
        observations, rewards, success = play(dense, seed, act, 200)
        np.testing.assert_array_equal(derive(rule, observations, rewards), success)
        for end in np.flatnonzero(np.diff(success.astype(int))) + 1:  # wherever an episode might have been cut
            for last in (end, end + 1):
                told = derive(rule, observations[:last], rewards[:last])
                np.testing.assert_array_equal(told, success[:last])
        seen.append(success)
    assert seen[0].any()
    assert not np.concatenate(seen).all()


def place(name: str, simulator: Any, rng: np.random.Generator) -> None:
    """Put what success is about near the border between success and failure."""
    data, model = simulator.data, simulator.model
    if name == "door":
        data.joint("door_hinge").qpos[:] = rng.uniform(1.2, 1.5)
    elif name == "hammer":
        data.joint("nail_dir").qpos[:] = rng.uniform(0.07, 0.09)
    elif name == "relocate":
        away = rng.normal(size=3)
        goal = data.site("target").xpos + rng.uniform(0.05, 0.15) * away / np.linalg.norm(away)
        for axis in range(3):
            data.joint(f"OBJT{'xyz'[axis]}").qpos[:] += goal[axis] - data.body("Object").xpos[axis]
    else:
        model.body_quat[simulator.target_obj_body_id] = model.body("Object").quat  # the pen where it is
        for axis in "xy":
            data.joint(f"OBJR{axis}").qpos[:] += rng.normal(0, 0.25)
        data.joint("OBJTx").qpos[:] += rng.normal(0, 0.06)


def test_states_near_the_border(name: str, dense: Any) -> None:
    task, rng = TASKS[f"adroit/{name}"], np.random.default_rng(0)
    rule = rule_for(task)
    assert rule is not None
    told, rewarded, true = [], [], []
    import mujoco

    for seed in range(60):
        dense.reset(seed=seed)
        place(name, dense, rng)
        mujoco.mj_forward(dense.model, dense.data)
        obs, reward, _, _, info = dense.step(np.zeros(task.action_size, np.float32))
        told.append(rule.solved(obs[None].astype(np.float32))[0])
        rewarded.append(float(np.squeeze(reward)) > rule.reward)
        true.append(bool(np.all(info["success"])))
    np.testing.assert_array_equal(told, true)
    np.testing.assert_array_equal(rewarded, true)
    assert 10 <= sum(true) <= 50


def test_rules_are_of_the_four_tasks_and_of_no_other() -> None:
    ruled = [name for name, task in TASKS.items() if rule_for(task) is not None]
    assert sorted(ruled) == sorted(f"adroit/{name}" for name in NAMES)
    assert len(RULES) == 4
    assert words(None) == "unknown"
    assert "1.35 rad" in words(rule_for(TASKS["adroit/door"]))


def test_an_episode_of_one_step_is_told_by_its_reward() -> None:
    rule = rule_for(TASKS["adroit/door"])
    assert rule is not None
    opened = np.full((1, 39), 2.0, np.float32)
    assert derive(rule, opened, np.array([9.0])).tolist() == [False]
    assert derive(rule, np.zeros((1, 39)), np.array([19.0])).tolist() == [True]
    assert derive(rule, opened[:0], np.zeros(0)).tolist() == []
