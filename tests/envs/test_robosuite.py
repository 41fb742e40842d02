"""The robomimic tasks: sizes, order and meaning of the observation, controller, success, experts, pictures."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from policy_decorator.envs import TASKS, rendering
from policy_decorator.envs.robosuite import SCENES, make_env
from policy_decorator.envs.robosuite_experts import PEG, Gripper, wrap
from policy_decorator.envs.vector import DecisionEnv
from policy_decorator.errors import UserError

SIZES = {"lift": (19, 7, 400), "can": (23, 7, 400), "square": (23, 7, 400), "transport": (59, 14, 800)}


@pytest.fixture(scope="module", params=SCENES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def env(name: str) -> Iterator[Any]:
    yield from _made(name)


@pytest.fixture(scope="module")
def square() -> Iterator[Any]:
    yield from _made("square")


@pytest.fixture(scope="module")
def transport() -> Iterator[Any]:
    yield from _made("transport")


def _made(name: str) -> Iterator[Any]:
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    env = TASKS[f"robosuite/{name}"].make_env(None)
    yield env
    env.close()


def _still(env: Any) -> np.ndarray:
    return np.zeros(env.action_space.shape, np.float32)


@pytest.mark.parametrize(("name", "sizes"), SIZES.items())
def test_sizes_of_robomimic(name: str, sizes: tuple[int, int, int]) -> None:
    task = TASKS[f"robosuite/{name}"]
    assert (task.obs_size, task.action_size, task.max_steps) == sizes


def test_every_number_is_where_robomimic_has_it(env: Any, name: str) -> None:
    """Against the library's own sensors, each by its name; those of 1.5 that see an object in the hand come late."""
    env.reset(seed=4)
    obs, *_ = env.step(_still(env))
    told = env._simulator._get_observations(force_update=True)
    robots = [f"robot{i}_{key}" for i in range(SCENES[name].robots) for key in ("eef_pos", "eef_quat", "gripper_qpos")]
    objects = {
        "lift": ["cube_pos", "cube_quat", "-gripper_to_cube_pos"],
        "can": ["Can_pos", "Can_quat", "Can_to_robot0_eef_pos", "Can_to_robot0_eef_quat"],
        "square": ["SquareNut_pos", "SquareNut_quat", "SquareNut_to_robot0_eef_pos", "SquareNut_to_robot0_eef_quat"],
        "transport": [
            *("payload_pos", "payload_quat", "trash_pos", "trash_quat", "lid_handle_pos", "lid_handle_quat"),
            *("target_bin_pos", "trash_bin_pos", "payload_in_target_bin", "trash_in_trash_bin"),
            *("gripper0_to_payload", "gripper0_to_lid_handle", "gripper1_to_payload", "gripper1_to_trash"),
        ],
    }[name]
    told = env._simulator._get_observations(force_update=True)  # twice: now the late ones see this moment too
    parts = [-told[key[1:]] if key.startswith("-") else np.atleast_1d(told[key]) for key in robots + objects]
    np.testing.assert_allclose(obs, np.concatenate(parts), atol=1e-6)


def test_the_first_observation_is_whole(env: Any) -> None:
    obs, _ = env.reset(seed=0)
    following, *_ = env.step(_still(env))
    assert np.abs(obs - following).max() < 0.1  # of robosuite 1.5's own, seven are zero at first


def test_displacements_are_in_the_axes_of_the_world_for_both_robots(transport: Any) -> None:
    for axis in range(3):
        for robot in (0, 1):
            start, _ = transport.reset(seed=0)
            action = _still(transport)
            action[7 * robot + axis] = 1.0
            for _ in range(4):
                obs, *_ = transport.step(action)
            moved = (obs - start)[9 * robot :][:3]
            assert moved[axis] > 0.02
            assert np.abs(np.delete(moved, axis)).max() < 0.3 * moved[axis]


def test_rotations_are_rotation_vectors_in_the_axes_of_the_world(square: Any) -> None:
    for axis in range(3):
        start, _ = square.reset(seed=0)
        action = _still(square)
        action[3 + axis] = 0.5
        for _ in range(4):
            obs, *_ = square.step(action)
        turned = (Rotation.from_quat(obs[3:7]) * Rotation.from_quat(start[3:7]).inv()).as_rotvec()
        assert turned[axis] > 0.08
        assert np.abs(np.delete(turned, axis)).max() < 0.4 * turned[axis]


def test_fingers_close_above_zero_and_open_below(square: Any) -> None:
    for fingers, width in ((1.0, 0.0), (-1.0, 0.08)):
        square.reset(seed=0)
        action = _still(square)
        action[6] = fingers
        for _ in range(20):
            obs, *_ = square.step(action)
        assert obs[7] - obs[8] == pytest.approx(width, abs=0.004)


def test_ranges_of_the_layouts(square: Any) -> None:
    """NutAssemblySquare's own: y in 0.11 to 0.225, any angle."""
    starts = np.stack([square.reset(seed=seed)[0] for seed in range(100)])
    y, yaw = starts[:, 10], 2 * np.arctan2(starts[:, 14], starts[:, 15])
    assert 0.11 <= y.min() < 0.12
    assert 0.215 < y.max() <= 0.225
    assert len(np.unique(np.floor((yaw % (2 * np.pi)) / (np.pi / 4)))) == 8


def test_the_hammer_lies_either_way_and_stays_the_same_size(transport: Any) -> None:
    before, ways = transport._simulator.sim.model.geom_size.copy(), set()
    for seed in range(8):
        obs, _ = transport.reset(seed=seed)
        ways.add(bool(Rotation.from_quat(obs[21:25]).apply([0, 0, 1])[1] > 0))
        np.testing.assert_array_equal(transport._simulator.sim.model.geom_size, before)
    assert ways == {True, False}


def _put(env: Any, joint: str, pos: np.ndarray) -> None:
    sim = env._simulator.sim
    sim.data.set_joint_qpos(joint, np.array([*pos, 1, 0, 0, 0]))
    sim.data.set_joint_qvel(joint, np.zeros(6))
    sim.forward()


def test_square_succeeds_around_the_peg_and_low_and_out_of_the_hand(square: Any) -> None:
    for height, away, success in [(0.90, 0, False), (0.84, 0, True), (0.84, 0.05, False)]:
        square.reset(seed=0)
        _put(square, "SquareNut_joint0", np.array([PEG[0], PEG[1] + away, height]))
        _, reward, terminated, _, info = square.step(_still(square))
        assert (info["success"], bool(reward), terminated) == (success, success, False)


def test_transport_needs_both_in_their_bins(transport: Any) -> None:
    for hammer, trash in [(True, False), (False, True), (True, True)]:
        obs, _ = transport.reset(seed=0)
        if hammer:
            _put(transport, "payload_joint0", obs[39:42] + np.array([0.05, 0, 0.15]))
        if trash:
            _put(transport, "trash_joint0", obs[42:45] + np.array([0, 0, 0.05]))
        happened = [transport.step(_still(transport))[4]["success"] for _ in range(20)]
        assert any(happened) == (hammer and trash)


def test_the_fixed_length_mode_goes_on_after_success(square: Any) -> None:
    task = replace(TASKS["robosuite/square"], max_steps=6, ends_at_success=False)
    env = DecisionEnv(square, task, context=1, chunk=2)
    env.reset(seed=0)
    _put(square, "SquareNut_joint0", np.array([*PEG, 0.84]))
    told = [env.step(np.zeros((2, 7))) for _ in range(3)]
    assert [(end, cut) for _, _, end, cut, _ in told] == [(False, False), (False, False), (False, True)]
    assert told[0][4]["success"]
    assert sum(info["env_steps"] for *_, info in told) == 6


@pytest.mark.parametrize(("turned", "aim"), [(0.3, -1.2), (-1.0, 1.5)])
def test_the_expert_s_gripper_reaches_a_pose(turned: float, aim: float, square: Any) -> None:
    obs, _ = square.reset(seed=0)
    pos = obs[:3] + np.array([0.05, 0.1, -0.05])
    for yaw in (turned, aim):
        for _ in range(60):
            obs, *_ = square.step(Gripper(obs).to(pos, yaw, -1.0))
        assert np.linalg.norm(obs[:3] - pos) < 0.01
        assert abs(wrap(Gripper(obs).yaw - yaw, 2 * np.pi)) < 0.06


@pytest.mark.parametrize(("name", "episodes"), [("lift", 3), ("can", 2), ("square", 2)])
def test_the_experts_succeed(name: str, episodes: int) -> None:
    assert all(_successes(name, episodes))


@pytest.mark.slow
def test_the_expert_of_transport_succeeds() -> None:
    assert any(_successes("transport", 2))  # the second episode is played only where the first is lost


def _successes(name: str, episodes: int) -> Iterator[bool]:
    task = TASKS[f"robosuite/{name}"]
    assert task.make_expert is not None
    for env in _made(name):
        for seed in range(episodes):
            expert = task.make_expert()
            obs, info = env.reset(seed=seed)
            for _ in range(task.max_steps):
                action = expert(obs)
                assert action.shape == (task.action_size,)
                assert np.abs(action).max() <= 1
                obs, _, _, _, info = env.step(action)
                if info["success"]:
                    break
            yield bool(info["success"])


def test_square_s_expert_begins_again_where_it_lost_the_nut(square: Any) -> None:
    task = TASKS["robosuite/square"]
    assert task.make_expert is not None
    expert = task.make_expert()
    obs, info = square.reset(seed=1)
    start = obs[9:12].copy()
    for step in range(task.max_steps):
        obs, _, _, _, info = square.step(expert(obs))
        if step == 75:
            assert obs[11] > 0.85  # in the hand
            _put(square, "SquareNut_joint0", start)
        if info["success"]:
            break
    assert info["success"]
    assert step > 120


def test_an_episode_of_manipulation_leaves_nothing_behind(square: Any) -> None:
    """The contract test of all tasks acts at random, which rarely moves an object."""
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 7))

    def play() -> np.ndarray:
        start, _ = square.reset(seed=5)
        return np.stack([start, *(square.step(action)[0] for action in actions)])

    first, make_expert = play(), TASKS["robosuite/square"].make_expert
    assert make_expert is not None
    expert = make_expert()
    obs, _ = square.reset(seed=1)
    for _ in range(80):
        obs, *_ = square.step(expert(obs))
    assert obs[11] > 0.85  # in the hand
    np.testing.assert_array_equal(play(), first)


def test_pictures_show_the_nut_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    if rendering.renderer() is None:
        pytest.skip(rendering.how_to_render())
    monkeypatch.setenv("MUJOCO_GL", rendering.use_renderer())
    env: Any = TASKS["robosuite/square"].make_env("rgb_array")
    y, column = [], []
    for seed in range(6):
        y.append(env.reset(seed=seed)[0][10])
        picture = env.render()
        assert picture.shape == (rendering.HEIGHT, rendering.WIDTH, 3)
        brass = picture[..., 0].astype(int) - picture[..., 2] > 60
        brass[120:] = False  # the peg
        assert 150 < brass.sum() < 3000
        column.append(brass.nonzero()[1].mean())
    env.close()
    assert np.corrcoef(y, column)[0, 1] > 0.9  # the camera looks at the robot: its left is on the right


def test_a_rollout_is_drawn_again_the_same() -> None:
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    if rendering.renderer() is None:
        pytest.skip(rendering.how_to_render())
    actions = np.zeros((6, 7), np.float32)
    actions[:, 1] = 1.0
    one, two = (rendering.render_rollout(TASKS["robosuite/square"], actions, seed=0, max_frames=3) for _ in range(2))
    assert len(one) == 3
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one[0], one[-1])


def test_importing_it_says_nothing_and_chooses_no_renderer() -> None:
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    program = (
        "import logging, os; from policy_decorator.envs import TASKS; "
        "TASKS['robosuite/lift'].make_env(None).reset(seed=0); "
        "print(os.environ.get('MUJOCO_GL'), logging.root.manager.disable)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "None 0\n"
    assert done.stderr == ""


def test_an_unknown_scene_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"Unknown robomimic task 'squre'\. Did you mean 'square'"):
        make_env("squre")
