"""Many environments stepped as one: the same contract for a counter on the CPU and for ManiSkill on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from policy_decorator.envs import get_task
from policy_decorator.envs.maniskill import SIMULATED, batched
from policy_decorator.envs.maniskill.batched import BatchedSimulation
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError
from policy_decorator.evaluation import Recorded, run_episodes

N, STEPS = 6, 5
ON_GPU = ("stack-cube", "peg-insertion-side", "turn-procedural-faucet", "push-procedural-chair")


class Counting:
    """Every row adds up its actions from a random place on; row `solved` says that it has succeeded."""

    def __init__(self, n: int, size: int) -> None:
        self.at, self.solved, self.failing = torch.zeros(n, size), None, None

    def reset(self, seed: list[int] | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
        rows = torch.arange(len(self.at)) if options is None else options["env_idx"]
        if seed is not None:
            torch.manual_seed(seed[0])
        self.at = self.at.index_copy(0, rows, torch.rand(len(rows), self.at.shape[1]))
        return self.at.clone(), {}

    def step(self, action: Tensor) -> tuple[Tensor, Any, Any, Any, dict[str, Tensor]]:
        self.at = self.at + action
        rows = torch.arange(len(self.at))
        told = {"success": rows == self.solved} | ({} if self.failing is None else {"fail": rows == self.failing})
        return self.at.clone(), None, None, None, told

    def close(self) -> None: ...


def _counted(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[BatchedSimulation, Counting]:
    simulated = SIMULATED["stack-cube"]
    simulator = Counting(N, simulated.action_size)
    monkeypatch.setattr(batched, "make_simulator", lambda *_, **__: simulator)
    return BatchedSimulation(simulated, N, **{"max_steps": STEPS, "device": "cpu"} | options), simulator


@pytest.fixture(params=["counting", *ON_GPU])
def env(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "counting":
        yield _counted(monkeypatch, context=2)[0]
        return
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    task = get_task(f"maniskill/{request.param}").with_episodes(STEPS)
    if reason := task.why_not():
        pytest.skip(reason)
    made = make_vector(task, N, context=2, device="cuda")
    assert isinstance(made, BatchedSimulation)
    yield made
    made.close()


def _idle(env: BatchedSimulation, chunk: int = 1) -> Tensor:
    return torch.zeros(N, chunk, env.simulated.action_size, device=env.device)


def test_a_seed_decides_the_first_observations_and_rows_differ(env: BatchedSimulation) -> None:
    first = env.reset(7)
    assert first.shape[:2] == (N, 2)
    assert first.device.type == env.device.type
    assert torch.equal(first[:, 0], first[:, 1])
    env.step(_idle(env))
    torch.testing.assert_close(env.reset(7), first, rtol=0, atol=1e-4)  # a GPU rounds as it likes
    assert len(first[:, -1].unique(dim=0)) == N
    assert not torch.allclose(env.reset(8), first, atol=1e-2)


def test_a_time_out_is_a_truncation_with_the_final_observation(env: BatchedSimulation) -> None:
    env.reset(7)
    for k in range(STEPS):
        before, out = env.window.clone(), env.step(_idle(env))
        assert out.done.tolist() == [k == STEPS - 1] * N
        assert not out.terminated.any()
        assert torch.equal(out.final_window[:, 0], before[:, 1])
        assert out.episode.tolist() == list(range(7, 7 + N))
        assert all(x.device.type == "cpu" for x in (out.success, out.terminated, out.done, out.env_steps, out.episode))
    assert (out.window[:, 0] == out.window[:, 1]).all()  # pyright: ignore[reportPossiblyUnboundVariable]
    assert env.seeds.tolist() == list(range(7 + N, 7 + 2 * N))


def test_only_rows_that_end_begin_anew(env: BatchedSimulation) -> None:
    env.reset(7)
    ends = torch.arange(N) % 2 == 0
    env.steps = torch.where(ends.to(env.device), STEPS - 1, 0)
    out = env.step(_idle(env))
    assert out.done.tolist() == ends.tolist()
    assert out.window.device.type == env.device.type
    changed = (out.window != out.final_window).flatten(1).any(1).cpu()
    assert changed.tolist() == ends.tolist()
    assert (out.window[ends, 0] == out.window[ends, 1]).all()
    assert env.steps.tolist() == [0 if end else 1 for end in ends.tolist()]
    assert env.seeds[ends].tolist() == [7 + N, 8 + N, 9 + N]
    goes_on = env.step(_idle(env))
    assert torch.equal(goes_on.final_window[:, 0], out.window[:, 1])


def test_what_a_chunk_does_after_an_episodes_end_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    env, simulator = _counted(monkeypatch)
    first, simulator.solved, simulator.failing = env.reset(7), 2, 4
    action = _idle(env, 3) + 0.1
    out = env.step(action)
    assert out.success.tolist() == [row == 2 for row in range(N)]
    assert out.terminated.tolist() == out.done.tolist() == [row in (2, 4) for row in range(N)]
    assert out.env_steps.tolist() == [3, 3, 1, 3, 1, 3]
    moved = (out.final_window - first)[:, 0, 0] / 0.1
    torch.testing.assert_close(moved, torch.tensor([3.0, 3, 1, 3, 1, 3]))
    assert not torch.allclose(out.window[2], out.final_window[2])


def test_where_success_ends_nothing_it_is_only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    env, simulator = _counted(monkeypatch, ends_at_success=False)
    env.reset(7)
    simulator.solved = 1
    out = env.step(_idle(env, 3))
    assert out.success.tolist() == [row == 1 for row in range(N)]
    assert not out.done.any()
    assert out.env_steps.tolist() == [3] * N
    out = env.step(_idle(env, 3))
    assert out.done.all()
    assert not out.terminated.any()
    assert out.env_steps.tolist() == [2] * N


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_action_that_is_not_finite_is_refused_and_never_simulated(bad: float, monkeypatch: Any) -> None:
    env, simulator = _counted(monkeypatch)
    env.reset(7)
    action = _idle(env, 3)
    action[1, 2, 0] = action[4, 0, 1] = bad
    with pytest.raises(UserError, match=r"rows \[1, 4\] is not finite.*evaluate the base policy alone"):
        env.step(action)
    assert simulator.at.isfinite().all()


class Steady:
    """Pushes on by the same in every step and remembers, row by row, in how many decisions of an episode."""

    context, queries = 1, 0

    def __init__(self, speed: float) -> None:
        self.speed, self.decided = speed, dict[int, int]()

    def session(self) -> "Steady":
        return Steady(self.speed)

    def reset(self, rows: Tensor) -> None:
        self.decided |= dict.fromkeys(rows.tolist(), 0)

    def act(self, window: Tensor, rows: Tensor) -> Tensor:
        for row in rows.tolist():
            self.decided[row] += 1
        assert max(self.decided.values()) <= STEPS, "it was not told where an episode began"
        return torch.full((len(rows), 1, window.shape[-1]), self.speed)


class Arriving(Counting):
    """Has succeeded where the first number has passed 1."""

    def step(self, action: Tensor) -> tuple[Tensor, Any, Any, Any, dict[str, Tensor]]:
        out = super().step(action)
        return *out[:4], {"success": out[0][:, 0] > 1}


@pytest.mark.parametrize("episodes", [4, N, 15, 3 * N])
def test_two_policies_meet_the_same_start_in_every_episode(episodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = SIMULATED["stack-cube"]
    monkeypatch.setattr(batched, "make_simulator", lambda *_, **__: Arriving(N, simulated.action_size))
    played = {}
    for speed in (0.05, 0.4):
        env = Recorded(BatchedSimulation(simulated, N, max_steps=STEPS, device="cpu"))
        told = run_episodes(env, Steady(speed), episodes, 100)
        played[speed] = told, [env.trajectories[100 + k] for k in range(episodes)]
    (slow, slowly), (fast, fastly) = played.values()
    assert fast.env_steps.mean() < slow.env_steps.mean()
    for k, (a, b) in enumerate(zip(slowly, fastly, strict=True)):
        assert a.obs[0].tolist() == b.obs[0].tolist(), f"episode {k} began elsewhere"
    assert len({tuple(a.obs[0]) for a in slowly}) == episodes
    for told, trajectories in played.values():
        assert [len(t.obs) for t in trajectories] == told.env_steps.tolist()
        for t, steps, success in zip(trajectories, told.env_steps, told.success, strict=True):
            wanted = 1 + int((1 - t.obs[0][0]) / t.actions[0][0, 0])  # steps until the first number has passed 1
            assert (steps, success) == (min(wanted, STEPS), wanted <= STEPS)
