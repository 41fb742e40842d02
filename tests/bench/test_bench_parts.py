"""The parts of the benchmark: children, environments, the residual as a wrapper, memory, scaling."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from policy_decorator.base_policies import build
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.bench import loop, measure, sb3, scaling
from policy_decorator.bench.child import Child, peak_memory
from policy_decorator.bench.config import BenchConfig, base_of, task_of, thread_counts
from policy_decorator.bench.learner import full_replay
from policy_decorator.bench.measure import in_turns
from policy_decorator.bench.sb3 import make_env
from policy_decorator.bench.synthetic import SyntheticVector, synthetic_task
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError
from policy_decorator.progress import Silent

TINY = BenchConfig(
    env="synthetic", base="mlp", obs=4, action=2, width=8, depth=1, batch_size=8, envs=2, replay=50, threads=(1,)
)


class Doubler:
    """A side for the test of `Child`."""

    def __init__(self, refuse: bool = False) -> None:
        if refuse:
            raise UserError("not like this")

    def __call__(self, question: Any) -> Any:
        print("to stdout")
        if question == "threads":
            torch.set_num_threads(3)
            return torch.get_num_threads()
        return 2 * question


def test_a_child_answers_alone_and_keeps_its_settings_to_itself(capfd: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    with Child(Doubler) as child:
        assert child.ask(21) == 42
        assert child.ask("threads") == 3
        process = child.process
        with pytest.raises(RuntimeError, match="unsupported operand"):
            child.ask(None)
    assert torch.get_num_threads() == before
    assert process.exitcode == 0
    assert capfd.readouterr().out == ""
    with pytest.raises(UserError, match="not like this"):
        Child(Doubler, True)


def test_in_turns_asks_everything_before_it_asks_again() -> None:
    asked: list[str] = []

    def ask(name: str) -> float:
        asked.append(name)
        return float(len(asked))

    answers = in_turns({"a": lambda: ask("a"), "b": lambda: ask("b")}, 3, Silent(), "")
    assert asked == ["a", "b"] * 3
    assert answers == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_synthetic_environments_keep_the_contract_of_a_vector() -> None:
    task = synthetic_task(6, 3)
    gym_like, native = make_vector(task, 4, context=2), SyntheticVector(4, 6, max_steps=5)
    assert gym_like.reset(0).shape == (4, 2, 6)
    assert native.reset(0).shape == (4, 1, 6)
    for env, length in ((gym_like, task.max_steps), (native, 5)):
        dones = [env.step(torch.zeros(4, 1, 3)).done for _ in range(length)]
        assert [bool(d.any()) for d in dones] == [False] * (length - 1) + [True]
        assert dones[-1].all()


def test_a_chunk_takes_as_many_synthetic_steps_as_of_any_simulator() -> None:
    task = synthetic_task(6, 3).with_episodes(8, True)
    gym_like, native = make_vector(task, 2, chunk=3), SyntheticVector(2, 6, max_steps=8)
    taken = []
    for env in (gym_like, native):
        env.reset(0)
        steps = [env.step(torch.zeros(2, 3, 3)) for _ in range(4)]
        taken.append([(step.env_steps.tolist(), step.done.tolist()) for step in steps])
    assert taken[0] == taken[1]
    assert [steps for steps, _ in taken[1]] == [[3, 3], [3, 3], [2, 2], [3, 3]]


def test_the_wrapper_executes_base_plus_bounded_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    task = synthetic_task(4, 2)
    base = build("mlp", 4, 2, MLPConfig(width=8, context=3))
    env = make_env(task, base, 0.25, threads=None)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs, np.asarray(env.window)[-1])
    asked: list[np.ndarray] = []
    monkeypatch.setattr(
        env.env.unwrapped, "step", lambda a: (asked.append(a), (obs + 1, 0.0, False, False, {"success": False}))[1]
    )
    residual = np.array([0.4, -1.0], np.float32)
    window = torch.from_numpy(np.asarray(env.window).copy())
    newest, reward, terminated, truncated, _ = env.step(residual)
    expected = base.act(window[None])[0, 0].numpy() + 0.25 * residual
    np.testing.assert_allclose(asked[0], expected.clip(-1, 1), rtol=1e-6)
    np.testing.assert_array_equal(newest, obs + 1)
    assert (reward, terminated, truncated) == (-1.0, False, False)


def test_a_full_replay_has_no_row_unwritten() -> None:
    replay = full_replay(10_050, 4, 2, torch.device("cpu"))
    assert replay.size == replay.capacity == 10_050
    assert replay.data is not None
    assert (replay.data.reward == -1).all()
    assert (replay.data.obs != 0).any(dim=1).all()


def test_peak_memory_counts_what_was_used() -> None:
    before = peak_memory()["learner"]
    if before is None:
        pytest.skip("no /proc on this system")
    block = np.ones(before // 8 + 25_000_000)  # more than was ever used
    after = peak_memory()["learner"]
    assert after is not None
    assert after >= before + 8 * 20_000_000
    assert block[-1] == 1


def test_names_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="39 observations"):
        task_of(BenchConfig(obs=5))
    with pytest.raises(UserError):
        task_of(BenchConfig(env="adroit/dor"))
    with pytest.raises(UserError):
        base_of(BenchConfig(env="synthetic", base="no/such/folder"), synthetic_task(4, 2))
    assert task_of(BenchConfig(env="synthetic")).obs_size == 39
    assert thread_counts(BenchConfig(threads=(3,))) == (3,)
    assert thread_counts(BenchConfig())[0] == 1


@pytest.mark.parametrize("what", ["environments", "batch", "replay", "base parameters"])
def test_each_thing_grows_for_itself(what: scaling.What) -> None:
    size = 1_000_000 if what == "base parameters" else 12
    exact, seconds, counts = scaling.Growing(TINY, 1, "float32")(scaling.Question(what, size, 0.01))
    assert exact == pytest.approx(size, rel=0.15)
    assert counts == {"base parameters": TINY.envs, "replay": TINY.batch_size}.get(what, size)
    assert 0 < seconds < 60


def test_what_takes_too_long_or_too_much_memory_is_left_out() -> None:
    panel = scaling.Panel("replay", (1, 8, 64, 100), "one batch", "transitions")
    asked: list[int] = []

    def ask(q: scaling.Question) -> tuple[int, float, int]:
        asked.append(q.size)
        return q.size, 1.0 * q.size, 3

    rows = list(scaling.panel_rows(panel, ask, budget=100.0, room=64))  # five calls of 64 s would be 320 s
    assert asked == [1, 8]
    assert [row.get("ms") for row in rows] == [1000, 8000, None, None]
    assert [row.get("per_s") for row in rows[:2]] == [3, 3 / 8]
    assert "it would take about 320 s" in rows[2]["note"]
    assert "64 transitions fill" in rows[3]["note"]


@pytest.mark.parametrize(("about", "sizes"), scaling.BASES.items())
def test_base_policies_grow_as_they_say(about: int, sizes: tuple[int, int]) -> None:
    from policy_decorator.base_policies.bet import BeTConfig

    with torch.device("meta"):
        base = build("bet", 39, 28, BeTConfig(width=sizes[0], layers=sizes[1]))
    assert sum(p.numel() for p in base.parameters()) == pytest.approx(about, rel=0.15)


def test_the_fastest_settings_of_each_side_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rated:
        def __init__(self, cfg: BenchConfig, how: Any) -> None:
            self.rate = 100.0 - 10 * (how.threads != 1) + 5 * (how == sb3.Setting("subproc", how.threads))

        def __enter__(self) -> "Rated":
            return self

        def __exit__(self, *error: object) -> None: ...

        def ask(self, question: Any) -> float:
            assert question == loop.Question("train", TINY.steps)
            return self.rate

    monkeypatch.setattr(measure, "_loop", Rated)
    cfg = dataclasses.replace(TINY, workers=3, precisions=("float32", "bfloat16"))
    settings, tried = measure.choose_settings(cfg, {"threads": 2}, Silent())
    assert [(s.threads, s.precision) for s in settings if isinstance(s, loop.Setting)] == [
        (1, "float32"),
        (1, "bfloat16"),
    ]
    assert settings[-1] == sb3.Setting("subproc", 1)
    assert {row["label"] for row in tried if row["side"] == "sb3"} == {
        str(sb3.Setting(place, n)) for place in ("dummy", "subproc") for n in (None, 1)
    }
    at_once, nothing = measure.choose_settings(
        dataclasses.replace(cfg, calibrate=False, sb3=False), {"threads": 2}, Silent()
    )
    assert [(s.threads, nothing) for s in at_once] == [(2, []), (2, [])]
