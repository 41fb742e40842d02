"""What training relies on, for every task in state and in images: seeds, time limits, success, rows, processes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from policy_decorator.envs import TASKS, get_task, rendering
from policy_decorator.envs.task import Task
from policy_decorator.envs.vector import make_vector

EVERY = tuple(TASKS) + tuple(f"{name}:{mode}" for name, task in TASKS.items() for mode in task.images)
PER_SIMULATOR = ("metaworld/peg-insert-side", "adroit/pen", "maniskill/stack-cube", "robosuite/lift")
IMAGES_OF_META_WORLD = "metaworld/peg-insert-side:rgb"
DRAWN = (  # each stands for all that are drawn by the same wrapper; every Adroit hand has a camera of its own
    "toy/reach:rgb",
    IMAGES_OF_META_WORLD,
    "maniskill/stack-cube:rgbd",
    "maniskill/push-procedural-chair:rgbd",  # with cameras on the robot
)
STEPS = 3  # of an episode


def _get(name: str) -> Task:
    task = get_task(name)
    if (reason := task.why_not()) is not None:
        pytest.skip(reason)
    if task.shows is not None and rendering.renderer() is None:
        pytest.skip(rendering.how_to_render())
    return task


def _tasks() -> Iterator[str]:
    for name in EVERY:
        if ":" not in name or name.startswith("adroit/") or name in DRAWN:
            yield name


@pytest.fixture(scope="module", params=_tasks())
def task(request: pytest.FixtureRequest) -> Task:
    return _get(request.param)


def _actions(task: Task, rows: int) -> Tensor:
    drawn = torch.rand(STEPS + 1, rows, 1, task.action_size, generator=torch.Generator().manual_seed(0))
    return 2 * drawn - 1


def _same(one: Any, two: Any) -> bool:
    """Bit for bit in the state; a renderer may round a pixel otherwise."""
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    dim = (one["rgb"].int() - two["rgb"].int()).abs().float().mean()
    return torch.equal(one["state"], two["state"]) and bool(dim < 1)


@pytest.mark.slow
def test_a_batch_is_its_rows_alone_and_a_timeout_is_a_truncation(task: Task) -> None:
    short, actions = replace(task, max_steps=STEPS), _actions(task, 2)
    batch = make_vector(short, 2)
    first = batch.reset(50)
    told = [batch.step(a) for a in actions]
    assert _same(batch.reset(50), first)
    batch.close()
    assert not _same(first[:1], first[1:])  # each seed is a layout of its own
    single = make_vector(short, 1)
    for row in range(1 if task.shows else 2):  # pictures take long to draw
        assert _same(first[row : row + 1], single.reset(50 + row))
        for k, action in enumerate(actions[:STEPS]):
            alone, together = single.step(action[row : row + 1]), told[k]
            assert _same(together.final_window[row : row + 1], alone.final_window)
            assert together.done[row] == alone.done[0] == (k == STEPS - 1)
            assert not together.terminated[row]
        last = told[STEPS - 1]
        assert (last.episode[row], told[STEPS].episode[row]) == (50 + row, 52 + row)
        assert not _same(last.window[row : row + 1], last.final_window[row : row + 1])  # the next episode's first frame
        assert _same(last.window[row : row + 1], single.reset(52 + row))
    single.close()


class Solved(gym.Wrapper[Any, Any, Any, Any]):
    """The task's own environment, said to be solved at its second step and at no other."""

    steps = 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return super().reset(**options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, info | {"success": self.steps == 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PER_SIMULATOR, IMAGES_OF_META_WORLD])
@pytest.mark.parametrize("ends", [True, False])
def test_success_ends_an_episode_or_not(name: str, ends: bool) -> None:
    task = _get(name)
    solved = replace(task, make_env=lambda mode: Solved(task.make_env(mode)), make_native=None, max_steps=STEPS)
    env = make_vector(solved.with_episodes(ends_at_success=ends), 1)
    env.reset(0)
    told = [env.step(action) for action in _actions(task, 1)[:STEPS]]
    env.close()
    assert [bool(out.success) for out in told] == [False, True, False]
    assert [bool(out.terminated) for out in told] == [False, ends, False]
    assert [bool(out.done) for out in told] == ([False, True, False] if ends else [False, False, True])


@pytest.mark.slow
@pytest.mark.parametrize("name", PER_SIMULATOR)
def test_processes_do_the_same_and_end(name: str) -> None:
    task = replace(_get(name), max_steps=STEPS)
    here, processes = make_vector(task, 2), make_vector(task, 2, workers=2)
    running = processes.envs.processes  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(here.reset(7), processes.reset(7))
    for action in _actions(task, 2):  # the last is another episode's
        one, two = here.step(action), processes.step(action)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    here.close()
    processes.close()
    assert not any(process.is_alive() for process in running)
