"""The laws of the decorator: bounded, progressive, and at first the base policy itself."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from policy_decorator.decorator import DecoratedPolicy, ProgressiveExploration, Residual
from policy_decorator.envs.toy import Reach
from policy_decorator.evaluation import run_episodes
from policy_decorator.rl.nets import NetConfig, TanhGaussian

unit = st.floats(-1, 1, width=32)
anything = st.floats(-5, 5, width=32)


@dataclass(frozen=True)
class LastFrame:
    """A base that answers from all frames, (B, To, 3) -> (B, 2, 2)."""

    context: int = 3

    def act(self, window: Tensor) -> Tensor:
        return torch.stack([window[:, 0, :2], window[:, -1, :2]], dim=1).sin()


# ---- bound ----------------------------------------------------------------------------------------------------


@given(
    base=st.lists(anything, min_size=6, max_size=6),
    raw=st.lists(unit, min_size=6, max_size=6),
    bound=st.floats(0, 1),
    sees=st.sampled_from(["sum", "concat", "residual"]),
)
def test_the_executed_action_is_within_the_bound(base: list[float], raw: list[float], bound: float, sees: str) -> None:
    b, r = (torch.tensor(x).view(1, 3, 2) for x in (base, raw))
    executed = Residual(bound, critic_sees=sees).execute(b, r)  # pyright: ignore[reportArgumentType]
    rounding = 2e-6  # of a float32 sum of size 6
    assert ((executed - b).abs() <= bound + rounding).all()
    torch.testing.assert_close(executed, b + bound * r)


@given(seed=st.integers(0, 1000), gain=st.sampled_from([0.01, 1.0, 100.0]), bound=st.floats(0.01, 1))
def test_no_network_can_leave_the_bound(seed: int, gain: float, bound: float) -> None:
    torch.manual_seed(seed)
    actor = TanhGaussian(3, (2, 2), NetConfig(width=8, depth=1, head_gain=gain))
    residual, base, window = Residual(bound), LastFrame(), 10 * torch.randn(16, 3, 3)
    sampled = residual.execute(base.act(window), actor(window[:, -1])[0])
    for action in (sampled, DecoratedPolicy(base, actor, residual).act(window)):
        assert ((action - base.act(window)).abs() <= bound + 1e-6).all()


def test_the_action_is_not_clipped_here() -> None:
    full = Residual(0.3).execute(torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    torch.testing.assert_close(full, torch.full((1, 1, 2), 1.3))


# ---- what the networks see ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sees", "expected"),
    [
        ("sum", [[[1.5, 2.0], [3.0, 4.5]]]),
        ("concat", [[[1.0, 0.0, 1.0, 2.0], [0.0, 1.0, 3.0, 4.0]]]),  # raw and unscaled, then base
        ("residual", [[[1.0, 0.0], [0.0, 1.0]]]),
    ],
)
def test_critic_action(sees: str, expected: list[list[list[float]]]) -> None:
    base, raw = torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[[1.0, 0], [0, 1]]])
    action = Residual(0.5, critic_sees=sees).critic_action(base, raw)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(action, torch.tensor(expected))


@pytest.mark.parametrize(("sees", "expected"), [("obs", [[7.0, 8, 9]]), ("obs+base", [[7.0, 8, 9, 1, 2, 3, 4]])])
def test_actor_input(sees: str, expected: list[list[float]]) -> None:
    obs, base = torch.tensor([[7.0, 8, 9]]), torch.tensor([[[1.0, 2], [3, 4]]])
    seen = Residual(0.5, actor_sees=sees).actor_input(obs, base)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(seen, torch.tensor(expected))


def test_an_idle_residual_leaves_the_base_action_bit_for_bit() -> None:
    base, residual = torch.randn(64, 4, 3), Residual(0.7)
    assert torch.equal(residual.execute(base, residual.idle(base)), base)


# ---- progressive exploration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("horizon", "start", "step", "epsilon"),
    [
        (1000, 0, 0, 0.0),
        (1000, 0, 250, 0.25),
        (1000, 0, 1000, 1.0),
        (1000, 0, 5000, 1.0),
        (1000, 200, 199, 0.0),
        (1000, 200, 200, 0.0),
        (1000, 200, 700, 0.5),
        (1000, 200, 1200, 1.0),
        (0, 0, 0, 1.0),
        (0, 300, 299, 0.0),
        (0, 300, 300, 1.0),
    ],
)
def test_epsilon(horizon: int, start: int, step: int, epsilon: float) -> None:
    assert ProgressiveExploration(horizon, start).epsilon(step) == pytest.approx(epsilon, abs=1e-12)


@given(horizon=st.integers(1, 10**7), a=st.integers(0, 10**7), b=st.integers(0, 10**7))
def test_epsilon_is_linear_until_it_is_one(horizon: int, a: int, b: int) -> None:
    epsilon = ProgressiveExploration(horizon).epsilon
    a, b = a % (horizon + 1), b % (horizon + 1)
    assert epsilon(a) - epsilon(b) == pytest.approx((a - b) / horizon, abs=1e-9)
    assert epsilon(horizon) == epsilon(horizon + a) == 1.0


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.3, 0.9, 1.0])
def test_the_gate_opens_with_probability_epsilon(epsilon: float) -> None:
    gate, rows, decisions = ProgressiveExploration(1000), 50, 800
    open_ = torch.stack([gate(int(1000 * epsilon), torch.zeros(rows, dtype=torch.long)) for _ in range(decisions)])
    n, sigma = rows * decisions, (epsilon * (1 - epsilon)) ** 0.5
    assert abs(open_.float().mean().item() - epsilon) <= 5 * sigma / n**0.5
    if 0 < epsilon < 1:  # drawn anew for every environment and at every decision: neighbours are uncorrelated
        x = open_.float() - epsilon
        for neighbours in (x[1:] * x[:-1], x[:, 1:] * x[:, :-1]):
            assert abs(neighbours.mean().item()) / sigma**2 <= 5 / n**0.5


# ---- the policy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0.03, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_untrained_it_is_the_base_policy(bound: float, seed: int) -> None:
    torch.manual_seed(seed)
    base, window = LastFrame(), torch.randn(500, 3, 3)
    actor = TanhGaussian(3, (2, 2))
    difference = DecoratedPolicy(base, actor, Residual(bound)).act(window) - base.act(window)
    assert difference.abs().max() <= 1e-2 * bound
    loud = TanhGaussian(3, (2, 2), NetConfig(head_gain=1.0))  # the small last layer is what makes it so
    difference = DecoratedPolicy(base, loud, Residual(bound)).act(window) - base.act(window)
    assert difference.abs().max() > 1e-2 * bound


def test_untrained_every_episode_goes_as_with_the_base(steady: nn.Module) -> None:
    decorated = DecoratedPolicy(steady, TanhGaussian(4, (1, 2)), Residual(0.1))  # pyright: ignore[reportArgumentType]
    alone, together = (run_episodes(Reach(50), p, 200, 7) for p in (steady, decorated))  # pyright: ignore[reportArgumentType]
    assert alone.success.tolist() == together.success.tolist()
    assert alone.env_steps.tolist() == together.env_steps.tolist()
    assert 0 < alone.rate < 1


def test_it_acts_by_the_mean_on_the_newest_frame() -> None:
    base, actor = LastFrame(), TanhGaussian(7, (2, 2), NetConfig(head_gain=1.0))
    policy = DecoratedPolicy(base, actor, Residual(0.4, "obs+base"))
    window = torch.randn(5, 3, 3)
    says = base.act(window)
    out = actor.net(torch.cat([window[:, -1], says.flatten(1)], dim=1))[0, :, :4]
    torch.testing.assert_close(policy.act(window), says + 0.4 * out.tanh().view(5, 2, 2))
    assert torch.equal(policy.act(window), policy.act(window))  # nothing is drawn
    older = window.clone()
    older[:, 1] += 1.0  # a frame that this base does not use either
    assert torch.equal(policy.act(older), policy.act(window))
    assert policy.context == 3


def test_decorators_stack() -> None:
    base = LastFrame()
    actors = [TanhGaussian(3, (2, 2), NetConfig(head_gain=100.0)) for _ in range(2)]
    first = DecoratedPolicy(base, actors[0], Residual(0.1))
    second = DecoratedPolicy(first, actors[1], Residual(0.05))
    window = torch.randn(100, 3, 3)
    difference = (second.act(window) - base.act(window)).abs()
    assert difference.max() <= 0.15 + 1e-6
    assert difference.max() > 0.1
    assert torch.equal(replace(second, composition=Residual(0.0)).act(window), first.act(window))
