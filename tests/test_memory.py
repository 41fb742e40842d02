"""Policies that remember: whose memory is asked, when it is emptied, and how a run with one is resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from interrupted import Interrupted
from torch import Tensor

from policy_decorator import api, snapshot
from policy_decorator.config import RefineConfig
from policy_decorator.decorator import DecoratedPolicy, ProgressiveExploration, Residual
from policy_decorator.demonstrate import demonstrate
from policy_decorator.demos.record import record_policy
from policy_decorator.envs import get_task
from policy_decorator.envs.toy import Reach
from policy_decorator.evaluation import VALIDATION, run_episodes
from policy_decorator.memory import Memoryless, RowMemory, ask, has_memory, session
from policy_decorator.refined import Refined
from policy_decorator.rl.nets import NetConfig, TanhGaussian
from policy_decorator.rollout import Collector

MakeConfig = Callable[..., RefineConfig]


class Counting:
    """Steers towards the goal, and adds to it how often it was asked in this episode: `answers` remembers both."""

    context, chunk = 1, 1

    def __init__(self, gain: float = 0.01) -> None:
        self.gain, self.queries = gain, 0
        self.memory = RowMemory()
        self.log: list[tuple[list[int], list[int], Tensor]] = []  # rows, their ages, windows

    def session(self) -> Self:
        return type(self)(self.gain)

    def reset(self, rows: Tensor) -> None:
        self.memory.reset(rows)

    def act(self, window: Tensor, rows: Tensor) -> Tensor:
        assert rows.dtype == torch.int64
        age = self.memory.read("age", rows, torch.zeros((), dtype=torch.long))
        self.memory.write("age", rows, age + 1)
        self.queries += len(window)
        self.log.append((rows.tolist(), age.tolist(), window.clone()))
        obs = window[:, -1]
        return (2 * (obs[:, 2:] - obs[:, :2]) + self.gain * age[:, None]).clamp(-1, 1)[:, None]


class Resumable(Counting):
    """The same, and its memory can be saved."""

    def state(self) -> dict[str, Any]:
        return self.memory.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.memory.restore(state)


def _collector(base: Any, n: int = 6, raw: float = 1.0) -> tuple[Collector, Callable[[Tensor], Tensor]]:
    collector = Collector(Reach(n, max_steps=7), base, Residual(0.3), ProgressiveExploration(0), seed=3)
    return collector, lambda seen: raw * torch.ones(len(seen), 1, 2)


def test_every_row_is_asked_once_per_decision_and_begins_anew_with_its_episode() -> None:
    collector, propose = _collector(Counting())
    asked: Any = collector.asked
    kinds = {"success": 0, "time-out": 0}
    for _ in range(60):
        before = collector.episode_step.tolist()
        first = len(asked.log)
        _, out = collector.decide(propose)
        kinds["success"] += int(out.terminated.sum())
        kinds["time-out"] += int((out.done & ~out.terminated).sum())
        rows, ages, window = asked.log[first]
        assert rows == list(range(6))
        # Behind a success the row is new; behind a time-out it is still the old episode's that is asked.
        assert ages == [0 if end else t + 1 for t, end in zip(before, out.terminated.tolist(), strict=True)]
        torch.testing.assert_close(window, torch.where(out.terminated[:, None, None], out.window, out.final_window))
        late = (out.done & ~out.terminated).nonzero()[:, 0].tolist()
        if late:
            rows, ages, window = asked.log[first + 1]
            assert (rows, ages) == (late, [0] * len(late))
            torch.testing.assert_close(window, out.window[late])
        assert len(asked.log) == first + 1 + bool(late)
    assert min(kinds.values()) > 2
    assert collector.base_queries == asked.queries == 6 + collector.decisions + kinds["time-out"]


def test_evaluation_leaves_the_memory_of_training_alone() -> None:
    base = Resumable()
    (one, propose), (two, _) = _collector(base), _collector(base)
    for k in range(30):
        a, b = one.decide(propose)[0], two.decide(propose)[0]
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        if k % 7 == 0:
            run_episodes(Reach(4), base, 6, VALIDATION)
            assert ask(base, torch.zeros(1, 1, 4)).shape == (1, 1, 2)  # not even asking the policy itself disturbs
    assert one.base_queries == two.base_queries


def test_an_evaluation_is_the_same_alone_and_in_a_batch() -> None:
    batch = run_episodes(Reach(5), Counting(0.02), 9, seed=11)
    alone = run_episodes(Reach(1), Counting(0.02), 9, seed=11)
    forgetful = run_episodes(Reach(5), Counting(0.0), 9, seed=11)
    assert batch.success.tolist() == alone.success.tolist()
    assert batch.env_steps.tolist() == alone.env_steps.tolist()
    assert batch.env_steps.tolist() != forgetful.env_steps.tolist()  # the memory matters


def test_a_decorated_policy_has_the_memory_of_its_base() -> None:
    actor = TanhGaussian(4, (1, 2), NetConfig(width=8, depth=1))
    base = Counting(0.02)
    decorated = DecoratedPolicy(DecoratedPolicy(base, actor, Residual(0.0)), actor, Residual(0.0))
    plain = run_episodes(Reach(5), base, 9, seed=11)
    outer = run_episodes(Reach(5), decorated, 9, seed=11)
    assert plain.env_steps.tolist() == outer.env_steps.tolist()
    opened = session(decorated)
    opened.act(torch.zeros(2, 1, 4), torch.tensor([0, 3]))
    assert (opened.queries, decorated.queries, base.queries) == (2, 0, 0)
    assert (decorated.context, decorated.chunk) == (1, 1)


def test_refined_acts_as_the_environments_are_played() -> None:
    actor = TanhGaussian(4, (1, 2), NetConfig(width=8, depth=1))
    refined = Refined(DecoratedPolicy(Counting(0.02), actor, Residual(0.1)), "toy/reach", 4)
    for episode in range(3):
        env = Reach(2)
        window, asked = env.reset(5 + episode), session(refined.policy)
        refined.reset()
        for _ in range(6):
            expected = asked.act(window, torch.arange(2)).clamp(-1, 1)
            assert torch.equal(refined.act(window[:, -1]), expected[:, 0])
            window = env.step(expected).window


def test_recording_and_demonstrations_ask_row_by_row_from_the_start_of_each_episode() -> None:
    task = get_task("toy/reach-gym")
    demos = record_policy(task, Counting(0.02), 4, seed=0, only_successes=False)
    alone = run_episodes(Reach(1), Counting(0.02), 4, seed=0)
    assert demos.lengths.tolist() == alone.env_steps.tolist()
    answers = demonstrate(demos, Counting(0.02), torch.device("cpu"))
    torch.testing.assert_close(answers.base, answers.action)  # what it would have done is what it did
    assert answers.base_queries == len(answers.obs)


class Chunked:
    """Three actions at once, the later ones weaker: no memory of its own, but a queue of them will have one."""

    context, chunk = 2, 3

    def act(self, window: Tensor) -> Tensor:
        obs = window[:, -1]
        return ((obs[:, 2:] - obs[:, :2])[:, None] * torch.tensor([3.0, 2.0, 0.5])[:, None]).clamp(-1, 1)


def _cut_and_resume(base: Any, config: RefineConfig, out: Path) -> tuple[Refined, list[str]]:
    with pytest.raises(KeyboardInterrupt):
        api.run(config, base, out=out, display=Interrupted(400))
    display = Interrupted(10**9)
    return api.run(config, base, out=out, display=display, resume=True), display.said


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize(("task", "base"), [("toy/reach", Resumable(0.03)), ("toy/reach-gym", Chunked())])
def test_a_memory_that_can_be_saved_is_resumed_bit_for_bit(
    task: str, base: Any, tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(task, total_steps=500, save_every=220)
    whole = api.run(config, base, out=tmp_path / "whole")
    cut, said = _cut_and_resume(base, config, tmp_path / "cut")
    assert not [line for line in said if "remembered" in line]
    different = {key for key, value in whole.summary.items() if cut.summary[key] != value}
    assert different <= {"wall_seconds"}
    states = [
        snapshot.read(tmp_path / run / "checkpoints" / "last.pt", torch.device("cpu")) for run in ("whole", "cut")
    ]
    ours, theirs = (state["memory"].get("queue", state["memory"]) for state in states)
    assert ours
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items())
    assert torch.equal(states[0]["action"], states[1]["action"])


@pytest.mark.usefixtures("unreported")
def test_where_it_cannot_be_saved_new_episodes_begin_and_this_is_said(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config("toy/reach-gym", total_steps=500, save_every=220)
    cut, said = _cut_and_resume(Counting(0.03), config, tmp_path / "cut")
    assert len([line for line in said if "remembered" in line]) == 1
    assert cut.summary["env_steps"] == 500


@pytest.mark.usefixtures("unreported")
def test_episodes_that_were_given_up_are_not_played_twice(tmp_path: Path, make_config: MakeConfig) -> None:
    collector, propose = _collector(Counting())
    for _ in range(20):
        collector.decide(propose)
    following = int(collector.env.state()["next_seed"])
    collector.start(following)
    _, out = collector.decide(propose)
    assert out.episode.tolist() == list(range(following, following + 6))
    asked: Any = collector.asked
    assert asked.log[-1][1] == [1] * 6  # they had been asked once, as their episodes began


def test_one_without_a_memory_is_asked_as_it_is(steady: Any) -> None:
    window = torch.randn(3, 1, 4)
    opened = session(steady)
    assert isinstance(opened, Memoryless)
    assert not has_memory(steady)
    assert torch.equal(opened.act(window, torch.tensor([5, 0, 2])), steady.act(window))
    assert (opened.queries, opened.session().queries) == (3, 0)


def test_rows_grow_and_are_emptied_one_by_one() -> None:
    memory, rows = RowMemory(), torch.tensor([4, 1])
    pair, count = torch.zeros(2), torch.zeros((), dtype=torch.long)
    assert memory.read("n", rows, count).tolist() == [0, 0]
    memory.write("h", rows, torch.tensor([[1.0, 2], [3, 4]]))
    memory.write("n", rows, torch.tensor([7, 8]))
    assert memory.read("n", torch.arange(5), count).tolist() == [0, 8, 0, 0, 7]
    saved = memory.state()
    memory.reset(torch.tensor([1, 9]))
    assert memory.read("h", rows, pair).tolist() == [[1, 2], [0, 0]]
    memory.reset(torch.zeros(0, dtype=torch.int64))
    other = RowMemory()
    other.restore(saved)
    other.write("h", torch.tensor([1]), torch.ones(1, 2))
    assert other.read("h", rows, pair).tolist() == [[1, 2], [1, 1]]
    assert saved["h"][1].tolist() == [3, 4]  # a copy
    assert memory.read("n", rows, count).tolist() == [7, 0]
