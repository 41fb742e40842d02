"""alpha from demonstrations, and epsilon from measured success."""

from dataclasses import replace
from typing import Literal, cast

import pytest
import torch

from policy_decorator.envs.toy import BiasedController, Reach
from policy_decorator.errors import UserError
from policy_decorator.methods import METHODS, Problem
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.rl.auto import BOUND_SHARE, MeasuredExploration, bound_of
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.sac import SAC, SACConfig

ROWS = torch.zeros(4, dtype=torch.long)


def _gate(base: list[bool], start: int = 100, opening_steps: int = 1000) -> MeasuredExploration:
    """After `start` steps in which the base's episodes ended as `base` says."""
    gate = MeasuredExploration(Monitor(), start, opening_steps)
    gate.monitor.recent.extend(base)
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
    assert bound_of(_demonstrated(both, 0.02)) > 1.3 * bound_of(_demonstrated(smooth, 0.05))


def test_episodes_of_a_single_decision_have_a_bound_too() -> None:
    action = torch.randn(50, 2)
    assert bound_of(_demonstrated(action, 0.1)) == pytest.approx(BOUND_SHARE * 0.1**0.5, rel=0.4)


def test_the_base_acts_alone_until_the_warm_up_and_enough_of_its_episodes_have_ended() -> None:
    gate = MeasuredExploration(Monitor(), 100, 1000)
    for step in range(1, 100):
        gate.monitor.recent.append(True)
        assert not gate(step, ROWS).any()
    assert gate.base_rate is None  # enough episodes, but before the end of the warm-up
    late = MeasuredExploration(Monitor(), 100, 1000)
    late.monitor.recent.extend([True] * 24)
    late(5000, ROWS)
    assert late.base_rate is None  # past the warm-up, but one episode short
    late.monitor.recent.append(False)
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
    gate.monitor.recent.extend(_episodes(0.2))
    gate(800, ROWS)
    assert gate.epsilon(800) == pytest.approx(0.3)
    gate(9000, ROWS)
    assert gate.epsilon(9000) == 0.0
    assert not gate(9001, ROWS).any()
    gate.monitor.recent.extend(_episodes(0.6))
    gate(9201, ROWS)
    assert gate.epsilon(9201) == pytest.approx(0.2)


@pytest.mark.parametrize(("rate", "opens"), [(0.52, True), (0.44, False)])
def test_a_shortfall_within_a_standard_error_is_taken_for_chance(rate: float, opens: bool) -> None:
    """Of 25 episodes at 60 %: 0.098."""
    gate = _gate(_episodes(0.6))
    gate.trust = 0.5
    gate.monitor.recent.extend(_episodes(rate))
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
        gate.monitor.recent.extend(_episodes(rate))
        gate(step, ROWS)
        other(step, ROWS)
        assert other.epsilon(step) == gate.epsilon(step)


def test_the_penalty_fades_after_epsilon_is_1_and_is_the_first_to_come_back() -> None:
    weight = torch.tensor(0.04)
    gate = MeasuredExploration(Monitor(), 100, 1000, penalty=weight)
    gate.monitor.recent.extend(_episodes(0.6))
    gate(100, ROWS)
    for step, epsilon, penalty in ((600, 0.5, 0.04), (1100, 1.0, 0.04), (1350, 1.0, 0.03), (2100, 1.0, 0.0)):
        gate(step, ROWS)
        assert gate.epsilon(step) == pytest.approx(epsilon)
        assert weight.item() == pytest.approx(penalty, abs=1e-8)
    gate(9000, ROWS)
    gate.monitor.recent.extend(_episodes(0.2))
    for step, epsilon, penalty in ((9500, 1.0, 0.02), (10_000, 1.0, 0.04), (10_500, 0.5, 0.04)):
        gate(step, ROWS)
        assert (gate.epsilon(step), weight.item()) == pytest.approx((epsilon, penalty))
    again = MeasuredExploration(gate.monitor, 100, 1000, penalty=torch.tensor(0.04))
    again.restore(gate.state())
    again(10_750, ROWS)
    assert again.epsilon(0) == pytest.approx(0.25)


@pytest.mark.parametrize("learner", ["sac", "td3"])
def test_a_run_trusts_its_learner_with_less_penalty(learner: Literal["sac", "td3"]) -> None:
    cfg = Config(horizon="auto", penalty_fades=True, learner=learner, sac=SACConfig(residual_penalty=0.04))
    run = METHODS["policy-decorator"].build(cfg, Problem(Reach(4), BiasedController(), 4, (1, 2), 2000, 100))
    gate, penalty = cast(MeasuredExploration, run.collector.gate), cast(SAC, run.learner).penalty
    assert penalty is not None
    gate.base_rate = 0.5
    run.monitor.recent.extend([True] * 25)
    gate(15_000, ROWS)
    assert penalty.item() == pytest.approx(0.02)
    for wrong in ({"horizon": 100}, {"sac": SACConfig()}):
        with pytest.raises(UserError, match="penalty_fades needs"):
            replace(cfg, **wrong)
