"""Exactly the episodes that were asked for, paired, without touching training."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policy_decorator import randomness
from policy_decorator.config import RefineConfig
from policy_decorator.decorator import DecoratedPolicy, Residual
from policy_decorator.envs.toy import MAX_STEPS, SPEED, TASKS, BiasedController, Reach
from policy_decorator.envs.vector import SimulatorVector, make_vector
from policy_decorator.errors import UserError
from policy_decorator.evaluation import (
    DEMOS,
    EPISODES_PER_SEED,
    TEST,
    TRAINING,
    VALIDATION,
    Gated,
    Recorded,
    run_episodes,
)
from policy_decorator.rl.nets import NetConfig, TanhGaussian
from policy_decorator.types import VectorEnv

VECTORS: dict[str, Callable[[int], VectorEnv]] = {
    "native": Reach,
    "gym": lambda n: SimulatorVector(TASKS["toy/reach-gym"], n),
}


def _one_by_one(policy: Any, seeds: range) -> list[tuple[bool, int]]:
    """Each episode alone in an environment of its own."""
    out = []
    for seed in seeds:
        env = Reach(1)
        window, step = env.reset(seed), None
        for k in range(1, MAX_STEPS + 1):
            step = env.step(policy.act(window).detach())
            window = step.window
            if step.done:
                out.append((bool(step.success), k))
                break
    return out


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("n", [1, 3, 7, 40])
def test_exactly_the_seeds_asked_for_in_order_however_many_environments(vector: str, n: int, steady: nn.Module) -> None:
    episodes = run_episodes(VECTORS[vector](n), steady, 23, 100)  # pyright: ignore[reportArgumentType]
    expected = _one_by_one(steady, range(100, 123))
    assert list(zip(episodes.success.tolist(), episodes.env_steps.tolist(), strict=True)) == expected
    assert episodes.seed == 100
    assert 0 < episodes.rate == np.mean([s for s, _ in expected]) < 1


def test_steps_of_surplus_episodes_are_counted_as_simulated(steady: nn.Module) -> None:
    base: Any = steady
    for n, episodes in ((4, 4), (7, 10)):
        recorded = Recorded(Reach(n))
        played = run_episodes(recorded, base, episodes, 50)
        assert played.simulated_steps == sum(len(t.obs) for t in recorded.trajectories.values())
        assert played.simulated_steps > played.env_steps.sum()


@pytest.mark.parametrize("workers", [0, 2])
def test_environments_without_an_episode_rest(workers: int) -> None:
    policy: Any = BiasedController()  # noisy: rows that rest must not change what the others draw
    going_on = run_episodes(Reach(7), policy, 23, 100)
    env = SimulatorVector(TASKS["toy/reach-gym"], 7, workers=workers)
    resting = run_episodes(env, policy, 23, 100)
    assert resting.success.tolist() == going_on.success.tolist()
    assert resting.simulated_steps == resting.env_steps.sum() == going_on.env_steps.sum() < going_on.simulated_steps
    few = run_episodes(env, policy, 2, 100)  # five of seven never begin
    assert few.simulated_steps == few.env_steps.sum()

    env.reset(100)  # as training does
    for _ in range(MAX_STEPS * 5):
        out = env.step(torch.zeros(7, 1, 2))
        assert out.env_steps.tolist() == [1] * 7
    assert env.next_seed > 123
    env.close()


def test_two_calls_draw_the_same_noise_and_leave_the_stream_of_training_alone() -> None:
    env, before = Reach(7), torch.get_rng_state()
    first = run_episodes(env, BiasedController(), 60, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(13)
    second = run_episodes(env, BiasedController(), 60, 5)
    assert first.success.tolist() == second.success.tolist()
    assert first.env_steps.tolist() == second.env_steps.tolist()
    other = run_episodes(env, BiasedController(), 60, 6)
    assert first.env_steps.tolist() != other.env_steps.tolist()


def test_it_needs_no_gradients(steady: nn.Module) -> None:
    modes = list[bool]()

    class Spy:
        context = 1

        def act(self, window: Tensor) -> Tensor:
            modes.append(torch.is_grad_enabled())
            return steady.act(window)  # pyright: ignore[reportCallIssue]

    run_episodes(Reach(4), Spy(), 4, 0)
    assert modes
    assert not any(modes)


def test_progress_ends_at_the_total_and_never_falls() -> None:
    calls: list[tuple[int, int]] = []
    run_episodes(Reach(4), BiasedController(), 15, 0, lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert {total for _, total in calls} == {15}
    assert calls[-1][0] == 15


def test_steps_of_chunks_are_environment_steps() -> None:
    class Chunks:
        context = 1

        def act(self, window: Tensor) -> Tensor:
            pos, goal = window[:, -1].chunk(2, dim=-1)
            return ((goal - pos) / (3 * SPEED)).clamp(-1, 1)[:, None].repeat(1, 3, 1)

    short, long = (run_episodes(SimulatorVector(TASKS["toy/reach-gym"], n, chunk=3), Chunks(), 20, 30) for n in (2, 5))
    assert short.env_steps.tolist() == long.env_steps.tolist()
    assert short.rate == 1.0  # three thirds of the way
    assert len({int(x) % 3 for x in short.env_steps}) > 1  # the last chunk was cut short


# ---- seeds ----------------------------------------------------------------------------------------------------


def test_success_in_an_episode_of_fixed_length_is_at_any_of_its_steps() -> None:
    class Passing:
        """To goals on the left, and away again from where it has arrived."""

        context = 1

        def act(self, window: Tensor) -> Tensor:
            pos, goal = window[:, -1].chunk(2, dim=-1)
            there = (goal - pos).norm(dim=-1, keepdim=True) < 0.06
            return torch.where(there, -1.0, (goal - pos) / SPEED * (goal[:, :1] < 0)).clamp(-1, 1)[:, None]

    task = TASKS["toy/reach-gym"]
    short = run_episodes(SimulatorVector(task, 3), Passing(), 40, 70)
    full = run_episodes(SimulatorVector(replace(task, ends_at_success=False), 3), Passing(), 40, 70)
    assert full.success.tolist() == short.success.tolist()
    assert 0.2 < full.rate < 0.8
    assert (full.env_steps == task.max_steps).all()
    assert (short.env_steps[short.success] < task.max_steps).all()


def test_ranges_of_seeds_do_not_meet() -> None:
    assert TRAINING < VALIDATION < TEST < DEMOS
    gaps = np.diff([TRAINING, VALIDATION, TEST, DEMOS])
    assert gaps.min() >= 100 * EPISODES_PER_SEED  # a hundred training seeds of ten million episodes


@pytest.mark.parametrize("seed", [-1, 100, 200])
def test_a_run_that_would_train_on_evaluations_is_refused(seed: int, make_config: Callable[..., RefineConfig]) -> None:
    with pytest.raises(UserError, match=f"seed must be 0 to 99, got {seed}"):
        make_config(seed=seed)
    for allowed in (0, 99):
        begins = TRAINING + make_config(seed=allowed).seed * EPISODES_PER_SEED
        assert TRAINING <= begins <= VALIDATION - EPISODES_PER_SEED


# ---- the behaviour at a step of training ----------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gated_lets_the_residual_speak_with_probability_epsilon(share: float) -> None:
    residual, n = Residual(0.5), 8000
    gated = Gated(residual, share)
    base, raw = torch.randn(n, 1, 2), torch.ones(n, 1, 2)
    executed = gated.execute(base, raw)
    spoke = (executed != base).all(dim=(1, 2))
    assert torch.equal(executed[spoke], residual.execute(base, raw)[spoke])
    assert torch.equal(executed[~spoke], base[~spoke])
    assert abs(spoke.float().mean().item() - share) <= 5 * (share * (1 - share) / n) ** 0.5


def test_gated_passes_everything_else_on() -> None:
    residual = Residual(0.5, "obs+base", "concat")
    gated = Gated(residual, 1.0)
    obs, base, raw = torch.randn(3, 4), torch.randn(3, 1, 2), torch.randn(3, 1, 2)
    assert torch.equal(gated.actor_input(obs, base), residual.actor_input(obs, base))
    assert torch.equal(gated.critic_action(base, raw), residual.critic_action(base, raw))
    assert torch.equal(gated.idle(base), residual.idle(base))


def test_at_step_zero_the_behaviour_is_the_base(steady: nn.Module) -> None:
    actor = TanhGaussian(4, (1, 2), NetConfig(head_gain=5.0))
    gated = Gated(Residual(0.5), 0.0)
    base: Any = steady
    closed, full = (DecoratedPolicy(base, actor, c) for c in (gated, Residual(0.5)))
    lengths = [run_episodes(Reach(10), p, 40, 3).env_steps.tolist() for p in (base, closed, full)]
    assert lengths[0] == lengths[1] != lengths[2]


# ---- trajectories ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS)
def test_recorded_trajectories_are_the_episodes(vector: str, steady: nn.Module) -> None:
    recorded = Recorded(VECTORS[vector](3))
    base: Any = steady
    run_episodes(recorded, base, 4, 500)
    episodes = run_episodes(recorded, base, 12, 0)  # reset forgets the first ones
    assert set(range(12)) <= set(recorded.trajectories)
    assert max(recorded.trajectories) < 500
    for seed in range(12):
        trajectory = recorded.trajectories[seed]
        assert len(trajectory.obs) == len(trajectory.actions) == episodes.env_steps[seed]
        window = Reach(1).reset(seed)
        np.testing.assert_allclose(trajectory.obs[0], window[0, 0], atol=1e-6)
        for obs, action, following in zip(trajectory.obs, trajectory.actions, trajectory.obs[1:], strict=False):
            np.testing.assert_allclose(action, base.act(torch.from_numpy(obs)[None, None])[0].detach(), atol=1e-6)
            moved = np.clip(obs[:2] + SPEED * action[0].clip(-1, 1), -1.5, 1.5)
            np.testing.assert_allclose(following[:2], moved, atol=1e-6)


def test_recording_changes_nothing_and_hands_the_state_through(steady: nn.Module) -> None:
    base: Any = steady
    plain, recorded = Reach(3), Recorded(Reach(3))
    assert run_episodes(plain, base, 9, 1).env_steps.tolist() == run_episodes(recorded, base, 9, 1).env_steps.tolist()
    state = recorded.state()
    assert state.keys() == plain.state().keys()
    plain.restore(state)
    assert torch.equal(plain.step(torch.zeros(3, 1, 2)).window, recorded.step(torch.zeros(3, 1, 2)).window)


@pytest.mark.parametrize("draw", [np.random.normal, random.gauss, lambda *how: float(torch.normal(*how, size=()))])
def test_whatever_generator_a_policy_draws_from_it_draws_the_same_and_leaves_it_alone(draw: Any) -> None:
    drawn: list[float] = []

    class Drawing:
        context = 1

        def act(self, window: Tensor) -> Tensor:
            drawn.append(float(draw(0.0, 1.0)))
            return torch.full((len(window), 1, 2), drawn[-1])

    env = make_vector(TASKS["toy/reach"], 3)
    randomness.seed_all(1)
    expected = draw(0.0, 1.0)
    randomness.seed_all(1)
    runs = []
    for _ in range(2):
        run_episodes(env, Drawing(), 5, VALIDATION)
        runs.append(drawn[:])
        drawn.clear()
    assert runs[0] == runs[1]
    assert draw(0.0, 1.0) == expected
