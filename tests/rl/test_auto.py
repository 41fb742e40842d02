"""alpha from demonstrations, and epsilon from measured success."""

import pytest
import torch

from policy_decorator.rl.auto import BOUND_SHARE, MeasuredExploration, bound_of
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.monitor import Monitor

ROWS = torch.zeros(4, dtype=torch.long)


def _gate(base: list[bool], start: int = 100, opening_steps: int = 1000) -> MeasuredExploration:
    """After `start` steps in which the base's episodes ended as `base` says."""
    gate = MeasuredExploration(Monitor(), start, opening_steps)
    gate.monitor.note(base)
    gate(start, ROWS)
    return gate


def _episodes(rate: float) -> list[bool]:
    return [True] * round(25 * rate) + [False] * (25 - round(25 * rate))


def _demonstrated(action: torch.Tensor, error: float, episodes: int = 50) -> Demonstrated:
    """Actions (N, 2) in episodes of equal length, and a base that is off by `error`."""
    n, action = len(action), action[:, None]
    base = action + error * torch.randn_like(action)
    return Demonstrated(torch.zeros(n, 3), action, base, torch.zeros(n), torch.full((episodes,), n // episodes))


def test_the_bound_lies_between_how_much_actions_vary_and_how_finely_they_are_placed() -> None:
    g = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.2, 0.6])  # 0.4 in the mean
    noise = torch.randn(20_000, 2, generator=g) * scale  # nothing but chance from one decision to the next
    assert bound_of(_demonstrated(noise, 0.0)) == pytest.approx(BOUND_SHARE * 0.4, rel=0.03)
    smooth = torch.randn(50, 1, 2, generator=g).expand(50, 400, 2).reshape(-1, 2)  # one action for each episode
    for error in (0.05, 0.2):
        wanted = BOUND_SHARE * (smooth.std(dim=0).mean() * error).sqrt()  # the base is all that is not exact
        assert bound_of(_demonstrated(smooth, error)) == pytest.approx(wanted.item(), rel=0.03)
    both = smooth + 0.1 * torch.randn(20_000, 2, generator=g)
    assert bound_of(_demonstrated(both, 0.3)) == pytest.approx(bound_of(_demonstrated(smooth, 0.3)), rel=0.03)
    assert bound_of(one := _demonstrated(both, 0.3), 1.4) == pytest.approx(2 * bound_of(one))
    assert bound_of(_demonstrated(both, 0.02)) > 1.3 * bound_of(_demonstrated(smooth, 0.05))


def test_episodes_of_a_single_decision_have_a_bound_too() -> None:
    action = torch.randn(50, 2)
    assert bound_of(_demonstrated(action, 0.1)) == pytest.approx(BOUND_SHARE * 0.1**0.5, rel=0.4)


def test_the_base_acts_alone_until_the_warm_up_and_enough_of_its_episodes_have_ended() -> None:
    gate = MeasuredExploration(Monitor(), 100, 1000)
    for step in range(1, 100):
        gate.monitor.note([True])
        assert not gate(step, ROWS).any()
    gate(100, ROWS)
    assert gate.epsilon(100) == 0  # enough episodes, but this is the end of the warm-up
    late = MeasuredExploration(Monitor(), 100, 1000)
    late.monitor.note([True] * 24)
    late(5000, ROWS)
    assert late.base_rate is None  # past the warm-up, but one episode short
    late.monitor.note([False])
    late(5001, ROWS)
    assert late.base_rate == pytest.approx(24 / 25)
    assert late.epsilon(5001) == 0.0


def test_it_opens_as_fast_as_it_may_while_success_holds() -> None:
    gate = _gate(_episodes(0.6))
    for step in range(101, 1101):
        gate(step, ROWS)
        assert gate.epsilon(step) == pytest.approx((step - 100) / 1000)
    gate(5000, ROWS)
    assert gate.epsilon(5000) == 1.0
    assert gate(5001, ROWS).all()


def test_it_closes_when_success_falls_and_opens_again_when_it_is_back() -> None:
    gate = _gate(_episodes(0.6))
    gate(600, ROWS)
    assert gate.epsilon(600) == pytest.approx(0.5)
    gate.monitor.note(_episodes(0.2))
    gate(800, ROWS)
    assert gate.epsilon(800) == pytest.approx(0.3)
    gate(9000, ROWS)
    assert gate.epsilon(9000) == 0.0
    assert not gate(9001, ROWS).any()
    gate.monitor.note(_episodes(0.6))
    gate(9201, ROWS)
    assert gate.epsilon(9201) == pytest.approx(0.2)


@pytest.mark.parametrize(("rate", "opens"), [(0.48, True), (0.44, False)])
def test_a_shortfall_within_a_standard_error_is_taken_for_chance(rate: float, opens: bool) -> None:
    """Of the difference between 25 episodes and 25 at 60 %: 0.139."""
    gate = _gate(_episodes(0.6))
    gate.value = 0.5
    gate.monitor.note(_episodes(rate))
    gate(101, ROWS)
    assert (gate.epsilon(101) > 0.5) == opens


def test_asking_twice_at_a_step_changes_nothing() -> None:
    gate = _gate(_episodes(0.6))
    gate(300, ROWS)
    before = gate.state()
    gate(300, ROWS)
    assert gate.state() == before


def test_epsilon_is_the_share_of_environments_that_open() -> None:
    gate = _gate(_episodes(1.0))
    gate(400, ROWS)
    assert gate(400, torch.zeros(20_000, dtype=torch.long)).float().mean().item() == pytest.approx(0.3, abs=0.015)


def test_its_state_is_all_there_is_to_go_on_with() -> None:
    gate = _gate(_episodes(0.6))
    gate(700, ROWS)
    other = MeasuredExploration(gate.monitor, 100, 1000)
    other.restore(gate.state())
    for step, rate in ((750, 0.6), (900, 0.1)):
        gate.monitor.note(_episodes(rate))
        gate(step, ROWS)
        other(step, ROWS)
        assert other.epsilon(step) == gate.epsilon(step)


def test_an_estimate_of_the_base_that_was_lucky_does_not_keep_it_shut() -> None:
    gate = _gate(_episodes(0.8))
    gate.monitor.note(_episodes(0.4))  # what the base is worth, seen while epsilon is 0
    gate(101, ROWS)
    assert gate.base_rate == pytest.approx(0.6)
    assert gate.epsilon(101) == 0
    gate.monitor.note(_episodes(0.4))
    gate(102, ROWS)
    assert gate.base_rate == pytest.approx(0.533, abs=1e-3)
    gate.monitor.note(_episodes(0.4))
    gate(103, ROWS)
    assert gate.epsilon(103) > 0


def test_episodes_begun_with_the_residual_are_not_the_bases() -> None:
    gate = _gate(_episodes(0.6))
    gate(400, ROWS)
    gate.monitor.note([False] * 25)
    gate(1000, ROWS)
    assert gate.epsilon(1000) == 0
    known = len(gate.alone)
    gate.monitor.note([False] * 3)
    gate(1001, ROWS)
    assert len(gate.alone) == known  # in four environments, as many episodes may have begun before
    gate.monitor.note([True] * 3)
    gate(1002, ROWS)
    assert list(gate.alone)[known:] == [True, True]
