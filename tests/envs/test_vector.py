"""Windows, chunks, time limits, seeds and replayed episodes, with an environment that can be computed by hand."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from policy_decorator.envs.task import Task
from policy_decorator.envs.toy import TASKS, Reach
from policy_decorator.envs.vector import DecisionEnv, SimulatorVector, make_vector
from policy_decorator.errors import UserError

MAX_STEPS = 9


class Clock(gym.Env[np.ndarray, np.ndarray]):
    """Observes (seed, t, sum of the first action entry); by its seed something happens at t = 2 + seed % 5.

    seed % 3 == 0: success; 1: the simulator terminates without success; 2: nothing, until the time limit.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float64)
        self.seen: list[np.ndarray] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None
        self.seed, self.t, self.total = seed, 0, 0.0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.seen.append(np.array(action))
        self.t += 1
        self.total += float(action[0])
        over = self.t == 2 + self.seed % 5
        success = over and self.seed % 3 == 0
        return self._obs(), 0.0, over and self.seed % 3 == 1, False, {"success": success}

    def _obs(self) -> np.ndarray:
        return np.array([self.seed, self.t, self.total])


def _length(seed: int) -> int:
    return MAX_STEPS if seed % 3 == 2 else 2 + seed % 5


def _task(max_steps: int = MAX_STEPS) -> Task:
    return Task("clock", 3, 2, max_steps, 1.0, "", "", lambda mode: Clock())


def _actions(n: int, chunk: int, steps: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, n, chunk, 2, generator=generator) * 3 - 1.5  # some beyond [-1, 1]


# ---- one environment ------------------------------------------------------------------------------------------


def test_the_window_is_padded_with_the_first_frame_and_ordered_from_old_to_new() -> None:
    env = DecisionEnv(Clock(), _task(), context=4, chunk=1)
    window, _ = env.reset(seed=2)
    assert window.dtype == np.float32
    assert window.tolist() == [[2, 0, 0]] * 4
    frames = [window[-1].tolist()]
    for k in range(1, 6):
        window, *_ = env.step(np.array([[0.5, 0.0]]))
        frames.append([2, k, 0.5 * k])
        assert window.tolist() == ([frames[0]] * 4 + frames)[-4:]
    window, _ = env.reset(seed=5)
    assert window.tolist() == [[5, 0, 0]] * 4  # nothing of the last episode


def test_within_a_chunk_every_frame_enters_the_window() -> None:
    env = DecisionEnv(Clock(), _task(), context=3, chunk=2)
    env.reset(seed=2)
    window, *_ = env.step(np.zeros((2, 2)))
    assert window[:, 1].tolist() == [0, 1, 2]


def test_the_window_that_was_returned_does_not_change_later() -> None:
    env = DecisionEnv(Clock(), _task(), context=2, chunk=1)
    first, _ = env.reset(seed=2)
    second, *_ = env.step(np.zeros((1, 2)))
    env.step(np.zeros((1, 2)))
    assert (first[:, 1].tolist(), second[:, 1].tolist()) == ([0, 0], [0, 1])


@pytest.mark.parametrize("chunk", [1, 2, 4, 20])
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 6, 13])
def test_a_chunk_stops_at_the_end_of_the_episode(chunk: int, seed: int) -> None:
    env = DecisionEnv(clock := Clock(), _task(), context=1, chunk=chunk)
    env.reset(seed=seed)
    total, over = 0, False
    while not over:
        _, reward, terminated, truncated, info = env.step(np.zeros((chunk, 2)))
        over = terminated or truncated
        assert info["env_steps"] == min(chunk, _length(seed) - total)
        total += info["env_steps"]
        assert info["success"] == bool(reward) == (over and seed % 3 == 0)
    assert total == len(clock.seen) == _length(seed)
    assert terminated == (seed % 3 != 2)
    assert truncated == (seed % 3 == 2)


def test_success_at_the_time_limit_is_a_termination() -> None:
    env = DecisionEnv(Clock(), _task(max_steps=2), context=1, chunk=1)
    env.reset(seed=0)  # succeeds at t = 2
    env.step(np.zeros((1, 2)))
    _, _, terminated, truncated, info = env.step(np.zeros((1, 2)))
    assert (terminated, truncated, info["success"]) == (True, False, True)


@pytest.mark.parametrize("chunk", [1, 2, 4, 20])
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 6, 13])
def test_episodes_of_fixed_length_go_on_after_success(chunk: int, seed: int) -> None:
    env = DecisionEnv(clock := Clock(), replace(_task(), ends_at_success=False), context=1, chunk=chunk)
    env.reset(seed=seed)
    succeeded, over, total = [], False, 0
    while not over:
        _, reward, terminated, truncated, info = env.step(np.zeros((chunk, 2)))
        succeeded.append(info["success"])
        assert reward == info["success"]
        over, total = terminated or truncated, total + info["env_steps"]
    fails = seed % 3 == 1  # what the simulator ends is over all the same
    assert total == len(clock.seen) == (_length(seed) if fails else MAX_STEPS)
    assert (terminated, truncated) == (fails, not fails)
    during = [(2 + seed % 5 - 1) // chunk] if seed % 3 == 0 else []
    assert np.flatnonzero(succeeded).tolist() == during  # the decision that held the moment, and no other


def test_actions_are_clipped() -> None:
    env = DecisionEnv(clock := Clock(), _task(), context=1, chunk=2)
    env.reset(seed=2)
    env.step(np.array([[1.7, -0.3], [-9.0, 1.0]], np.float32))
    np.testing.assert_allclose(clock.seen, [[1.0, -0.3], [-1.0, 1.0]], rtol=1e-6)


# ---- several --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "context", "chunk"), [(1, 1, 1), (3, 2, 1), (4, 3, 2)])
def test_every_row_is_the_single_environment_and_seeds_are_numbered(n: int, context: int, chunk: int) -> None:
    vector = SimulatorVector(_task(), n, context=context, chunk=chunk)
    singles = [DecisionEnv(Clock(), _task(), context, chunk) for _ in range(n)]
    seeds, following = list(range(40, 40 + n)), 40 + n
    window = vector.reset(40)
    expected = np.stack([env.reset(seed=s)[0] for env, s in zip(singles, seeds, strict=True)])
    assert window.tolist() == expected.tolist()
    ends = 0
    for action in _actions(n, chunk, 25):
        out = vector.step(action)
        assert out.episode.tolist() == seeds
        for i, env in enumerate(singles):
            w, _, terminated, truncated, info = env.step(action[i].numpy())
            assert out.final_window[i].tolist() == w.tolist()
            assert bool(out.success[i]) == info["success"]
            assert int(out.env_steps[i]) == info["env_steps"]
            assert (bool(out.terminated[i]), bool(out.done[i])) == (terminated, terminated or truncated)
            if terminated or truncated:
                seeds[i], following = following, following + 1
                w, _ = env.reset(seed=seeds[i])
                ends += 1
            assert out.window[i].tolist() == w.tolist()
    assert ends >= 3
    assert [x.dtype for x in (out.success, out.terminated, out.done)] == [torch.bool] * 3
    assert out.window.dtype == torch.float32


def test_reset_begins_anew_in_the_middle_of_episodes() -> None:
    vector = SimulatorVector(_task(), 3)
    vector.reset(0)
    for action in _actions(3, 1, 4):
        vector.step(action)
    assert vector.reset(7)[:, 0].tolist() == [[7, 0, 0], [8, 0, 0], [9, 0, 0]]
    assert vector.step(torch.zeros(3, 1, 2)).episode.tolist() == [7, 8, 9]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_action_that_is_not_finite_is_refused_and_the_row_is_named(bad: float) -> None:
    vector = SimulatorVector(_task(), 3)
    vector.reset(0)
    action = torch.zeros(3, 1, 2)
    action[1, 0, 1] = bad
    with pytest.raises(UserError, match=r"rows \[1\] is not finite.*evaluate the base policy alone"):
        vector.step(action)


@pytest.mark.parametrize(("name", "context", "chunk"), [("clock", 2, 2), ("toy/reach-gym", 3, 1)])
@pytest.mark.parametrize("at", [0, 1, 6])
def test_restore_brings_episodes_in_flight_back_exactly(name: str, context: int, chunk: int, at: int) -> None:
    task = _task() if name == "clock" else TASKS[name]
    one = SimulatorVector(task, 3, context=context, chunk=chunk)
    one.reset(11)
    actions = _actions(3, chunk, 40)
    for action in actions[:at]:
        one.step(action)
    state = one.state()
    frozen = {key: value.clone() for key, value in state.items()}
    other = SimulatorVector(task, 3, context=context, chunk=chunk)
    other.reset(99)
    other.step(actions[0])
    other.restore(state)
    for k, action in enumerate(actions[at:]):
        a, b = one.step(action), other.step(action)
        for name_, x, y in zip(a._fields, a, b, strict=True):
            assert torch.equal(x, y), (k, name_)
    assert all(torch.equal(state[key], frozen[key]) for key in frozen)  # the state is no view of what goes on
    again = other.state()
    assert again.keys() == one.state().keys()
    assert all(torch.equal(again[key], value) for key, value in one.state().items())


def test_an_action_changed_afterwards_by_its_owner_does_not_change_the_replay() -> None:
    one, other = (SimulatorVector(TASKS["toy/reach-gym"], 2) for _ in range(2))
    one.reset(0)
    buffer = torch.full((2, 1, 2), 0.3)
    one.step(buffer)
    buffer.fill_(-1.0)  # as a policy with an output buffer of its own would
    other.restore(one.state())
    a, b = (v.step(torch.zeros(2, 1, 2)) for v in (one, other))
    assert torch.equal(a.window, b.window)


def test_workers_do_what_one_process_does() -> None:
    task, n = TASKS["toy/reach-gym"], 3
    here = SimulatorVector(task, n, context=2, chunk=2)
    there = SimulatorVector(task, n, context=2, chunk=2, workers=2)  # two environments and one
    try:
        assert torch.equal(here.reset(5), there.reset(5))
        actions, ends = _actions(n, 2, 30), 0
        for action in actions[:17]:
            a, b = here.step(action), there.step(action)
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
            ends += int(a.done.sum())
        assert ends > 0
        there.restore(here.state())
        for action in actions[17:]:
            a, b = here.step(action), there.step(action)
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    finally:
        here.close()
        there.close()


def test_what_goes_wrong_in_a_worker_is_said() -> None:
    envs = SimulatorVector(replace(TASKS["toy/reach-gym"], make_env=int), 1, workers=1)  # pyright: ignore[reportArgumentType]
    try:
        with pytest.raises(RuntimeError, match=r"(?s)failed.*TypeError: int\(\)"):
            envs.reset(0)
    finally:
        envs.close()


def test_make_vector_takes_the_native_one_where_it_fits() -> None:
    assert isinstance(make_vector(TASKS["toy/reach"], 2), Reach)
    for options in ({"context": 2}, {"chunk": 3}):
        assert isinstance(make_vector(TASKS["toy/reach"], 2, **options), SimulatorVector)
    assert isinstance(make_vector(TASKS["toy/reach-gym"], 2), SimulatorVector)
    # A native one ends episodes by rules of its own.
    assert isinstance(make_vector(replace(TASKS["toy/reach"], ends_at_success=False), 2), SimulatorVector)


def test_make_vector_hands_the_time_limit_on() -> None:
    for name in ("toy/reach", "toy/reach-gym"):
        env = make_vector(replace(TASKS[name], max_steps=3), 2)
        env.reset(1)
        done = [env.step(torch.zeros(2, 1, 2)).done.tolist() for _ in range(6)]
        assert done == [[False, False], [False, False], [True, True]] * 2
