"""The toy: its native and its Gymnasium form are one task, and its controller nearly works."""

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from policy_decorator.envs.toy import MAX_STEPS, RADIUS, SPEED, TASKS, BiasedController, Reach, ReachEnv
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.evaluation import run_episodes


@pytest.mark.parametrize("n", [1, 5])
def test_native_and_gym_agree_step_by_step(n: int) -> None:
    native, simulated = Reach(n), SimulatorVector(TASKS["toy/reach-gym"], n)
    window = native.reset(123)
    torch.testing.assert_close(simulated.reset(123), window, rtol=0, atol=1e-6)
    steer, ends = BiasedController(0.12, 0.2), torch.zeros(2)
    for _ in range(120):
        action = steer.act(window) * 1.3
        a, b = native.step(action), simulated.step(action)
        for name, x, y in zip(a._fields, a, b, strict=True):
            if x.is_floating_point():
                torch.testing.assert_close(y, x, rtol=0, atol=1e-5)
            else:
                assert torch.equal(x, y.to(x.dtype)), name
        window = a.window
        ends += torch.tensor([int(a.success.sum()), int((a.done & ~a.success).sum())])
    assert (ends > 0).all()  # both successes and time-outs were seen


def test_a_step_by_hand() -> None:
    env = Reach(2)
    first = env.reset(0)[:, 0]
    action = torch.tensor([[[0.5, -0.25]], [[3.0, -3.0]]])
    out = env.step(action)
    moved = (first[:, :2] + SPEED * torch.tensor([[0.5, -0.25], [1.0, -1.0]])).clamp(-1.5, 1.5)
    torch.testing.assert_close(out.final_window[:, 0], torch.cat([moved, first[:, 2:]], dim=1))
    near = (moved - first[:, 2:]).norm(dim=1) < RADIUS
    assert torch.equal(out.success, near)
    assert out.env_steps.tolist() == [1, 1]


def test_episodes_end_at_success_or_at_the_limit_and_are_numbered() -> None:
    env = Reach(3)
    window, lengths, outcomes = env.reset(50), dict[int, int](), dict[int, bool]()
    still = torch.tensor([1.0, 0.0, 1.0])[:, None, None]  # the second point never moves
    for _ in range(100):
        out = env.step((window[:, :, 2:] - window[:, :, :2]) / SPEED * still)
        for i, seed in enumerate(out.episode.tolist()):
            assert seed not in outcomes  # nothing follows the end of an episode
            lengths[seed] = lengths.get(seed, 0) + 1
            if out.done[i]:
                outcomes[seed] = bool(out.success[i])
                assert bool(out.terminated[i]) == outcomes[seed]
                assert outcomes[seed] or lengths[seed] == MAX_STEPS
        window = out.window
    assert sorted(lengths) == list(range(50, 50 + len(lengths)))  # none left out
    assert len(lengths) - len(outcomes) <= 3
    assert set(outcomes.values()) == {True, False}


def test_layouts_fill_the_square_and_differ_between_seeds_far_apart_too() -> None:
    for seed in (0, 2_000_000_000):
        layout = Reach(2000).reset(seed)[:, 0]
        assert layout.abs().max() <= 1
        assert layout.std(dim=0).min() > 0.5  # 0.577 if uniform
        assert len(torch.unique(layout, dim=0)) == 2000
        assert torch.corrcoef(layout.T).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(Reach(3).reset(5), Reach(3).reset(5))
    assert torch.equal(Reach(3).reset(5)[1:], Reach(3).reset(6)[:2])


def test_restore_brings_it_back() -> None:
    one, other = Reach(4), Reach(4)
    one.reset(3)
    actions = torch.rand(60, 4, 1, 2) * 2 - 1
    for action in actions[:20]:
        one.step(action)
    other.restore(one.state())
    for action in actions[20:]:
        assert all(torch.equal(x, y) for x, y in zip(one.step(action), other.step(action), strict=True))


def test_the_gym_form_passes_gymnasiums_checker() -> None:
    env = ReachEnv()
    a, _ = env.reset(seed=4)
    b, _ = env.reset(seed=4)
    assert a.tolist() == b.tolist()
    assert env.observation_space.contains(a)
    unseeded = [env.reset()[0].tolist() for _ in range(3)]
    assert len({tuple(x) for x in unseeded}) == 3
    check_env(ReachEnv(), skip_render_check=True)


def test_the_controllers_bias_and_the_experts_success() -> None:
    env = Reach(50)
    rate = run_episodes(env, BiasedController(), 200, 10_000).rate
    assert 0.3 < rate < 0.65
    assert run_episodes(env, BiasedController(0.0, 0.0), 200, 10_000).rate == 1.0
    make_expert = TASKS["toy/reach"].make_expert
    assert make_expert is not None
    expert, window = make_expert(), env.reset(0)
    action = np.stack([expert(o) for o in window[:, 0].numpy()])
    torch.testing.assert_close(torch.from_numpy(action), BiasedController(0.0, 0.0).act(window)[:, 0])
