"""A residual on a base of action chunks: at every environment step, or once per chunk."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policy_decorator.chunks import step_by_step
from policy_decorator.config import RefineConfig
from policy_decorator.decorator import ProgressiveExploration, Residual
from policy_decorator.envs import get_task
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError
from policy_decorator.evaluation import Recorded, run_episodes
from policy_decorator.memory import session
from policy_decorator.refine import refine
from policy_decorator.refined import Refined
from policy_decorator.rollout import Collector

TASK, CONTEXT, CHUNK = get_task("toy/reach-gym"), 4, 3


class Planner(nn.Module):
    """Three steps at once, which depend on all frames of the window; keeps the windows it was shown."""

    context, chunk = CONTEXT, CHUNK

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.5, 1.5, 0.4]))
        self.bias = nn.Parameter(torch.tensor([0.15, 0.06]))  # a third of its episodes succeeds
        self.windows: list[Tensor] = []

    def act(self, window: Tensor) -> Tensor:
        self.windows += list(window.clone())
        drift = (window[:, -1, :2] - window[:, 0, :2])[:, None]
        towards = (window[:, -1, 2:] - window[:, -1, :2])[:, None]
        return (towards * self.weight[:, None] + 0.3 * drift + self.bias).clamp(-1, 1)


def _closed() -> ProgressiveExploration:
    return ProgressiveExploration(1, start=10**9)


def _collected(base: Any, chunk: int, steps: int, n: int) -> tuple[Collector, dict[int, np.ndarray], int]:
    """The trajectories (L, Da) of the episodes that ended, collected while the residual is silent; and resets."""
    env = Recorded(make_vector(TASK, n, context=CONTEXT, chunk=chunk))
    collector = Collector(env, base, Residual(0.5), _closed(), seed=40)
    lengths, timeouts = dict[int, int](), 0
    ended = set[int]()
    while collector.step < steps:
        _, out = collector.decide(lambda seen: torch.ones(len(seen), chunk, 2))
        for episode, taken, done in zip(out.episode.tolist(), out.env_steps.tolist(), out.done.tolist(), strict=True):
            lengths[episode] = lengths.get(episode, 0) + taken
            ended |= {episode} if done else set()
        timeouts += int((out.done & ~out.terminated).sum())
    played = {e: np.concatenate(env.trajectories[e].actions)[: lengths[e]] for e in ended}
    return collector, played, timeouts


def test_a_silent_residual_leaves_the_trajectory_of_the_base_in_both_modes() -> None:
    alone = Recorded(make_vector(TASK, 3, context=CONTEXT, chunk=CHUNK))
    reference = run_episodes(alone, Planner(), 25, seed=40)
    per_step, per_chunk = Planner(), Planner()
    stepping, steps_played, _ = _collected(step_by_step(per_step), 1, 300, 3)
    chunking, chunks_played, _ = _collected(per_chunk, CHUNK, 300, 3)
    assert len(steps_played) > 10
    assert len(chunks_played) > 10
    assert 0 < reference.success.mean() < 1
    for episode in range(40, 50):
        length = int(reference.env_steps[episode - 40])
        expected = np.concatenate(alone.trajectories[episode].actions)[:length]
        np.testing.assert_array_equal(steps_played[episode], expected)
        np.testing.assert_array_equal(chunks_played[episode], expected)
    assert stepping.decisions == stepping.step
    assert chunking.decisions < 0.5 * chunking.step


def test_the_base_is_asked_once_per_chunk_and_sees_the_windows_that_it_sees_alone() -> None:
    seen = []
    for base, chunk in ((step_by_step(inner := Planner()), 1), (other := Planner(), CHUNK)):
        collector, _, _ = _collected(base, chunk, 100, 1)
        assert collector.base_queries == len((inner if chunk == 1 else other).windows)
        seen.append(torch.stack((inner if chunk == 1 else other).windows))
    # Whole chunks ask about final windows too, which one by one still have actions left.
    stepping, chunking = ({tuple(w.flatten().tolist()) for w in windows} for windows in seen)
    assert len(stepping) > 20
    assert stepping <= chunking


@pytest.mark.parametrize("n", [1, 4])
def test_questions_are_counted_as_they_are_asked(n: int) -> None:
    base = Planner()
    collector, played, timeouts = _collected(step_by_step(base), 1, 400, n)
    assert timeouts > 0
    asked = sum(math.ceil(len(actions) / CHUNK) for actions in played.values())
    # Besides: the rows that still run. 25 steps are eight chunks and one action: no queue is empty at a time-out.
    assert asked <= collector.base_queries == len(base.windows) <= asked + n * math.ceil(TASK.max_steps / CHUNK)
    assert collector.base_queries < 0.5 * collector.decisions


def test_rows_are_emptied_one_by_one_and_evaluation_has_a_queue_of_its_own() -> None:
    base = Planner()
    queue = session(step_by_step(base))
    windows = torch.randn(3, CONTEXT, 4)
    rows = torch.arange(3)
    expected = base.act(windows)
    base.windows.clear()
    assert torch.equal(queue.act(windows, rows), expected[:, :1])
    assert torch.equal(queue.act(torch.randn(3, CONTEXT, 4), rows), expected[:, 1:2])
    other = queue.session()
    assert torch.equal(other.act(windows, rows), expected[:, :1])
    queue.reset(torch.tensor([1]))
    later = queue.act(windows, rows)
    assert torch.equal(later[[0, 2]], expected[[0, 2], 2:])
    assert torch.equal(later[1], expected[1, :1])
    assert (queue.queries, other.queries) == (4, 3)


def test_a_chunk_that_is_shorter_than_promised_is_refused(make_config: Callable[..., RefineConfig]) -> None:
    class Short(Planner):
        def act(self, window: Tensor) -> Tensor:
            return super().act(window)[:, :2]

    with pytest.raises(UserError, match=r"\(4, 2, 2\).*chunks have 3"):
        refine(make_config("toy/reach-gym"), Short(), force=True)


@pytest.mark.parametrize("decide", ["step", "chunk"])
def test_refined_in_both_modes(decide: str, make_config: Callable[..., RefineConfig], tmp_path: Path) -> None:
    base, config = Planner(), make_config("toy/reach-gym", decide=decide, total_steps=400)
    refined, comparison = refine(config, base, force=True)
    s = refined.summary
    alone = run_episodes(
        make_vector(TASK, 10, context=CONTEXT, chunk=CHUNK), base, 12, seed=comparison.base.episodes.seed
    )
    assert comparison.base.episodes.env_steps.tolist() == alone.env_steps.tolist()
    assert s["base_parameters_sha256"] is not None
    if decide == "step":
        assert s["decisions"] == s["env_steps"]
        assert s["base_queries"] < 0.6 * s["decisions"]
    else:
        assert s["decisions"] <= s["base_queries"] <= s["decisions"] + 2 * s["episodes"] + 8
        assert s["env_steps"] > 1.5 * s["decisions"]
    refined.save(tmp_path)
    again = Refined.load(tmp_path, policy=base)
    window = torch.randn(5, CONTEXT, 4)
    one, two = (session(r.policy) for r in (refined, again))
    rows = torch.arange(5)
    for _ in range(4):
        assert torch.equal(one.act(window, rows), two.act(window, rows))
    if decide == "step":
        assert again.act(np.zeros(4, np.float32)).shape == (2,)
