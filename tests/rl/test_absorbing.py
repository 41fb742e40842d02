"""Absorbing states: which rows become them, how often, and the values that critics learn behind an end."""

import torch
from torch import Tensor

from policy_decorator.rl.absorbing import AbsorbingCritics, Endless, absorbing, living
from policy_decorator.rl.nets import NetConfig, TanhGaussian
from policy_decorator.rl.replay import Replay
from policy_decorator.rl.settings import SACConfig
from policy_decorator.rl.td3 import TD3
from policy_decorator.types import Transition


def _replay(ends: tuple[bool, ...] = (False, False, True, False)) -> Replay:
    """Row k is (k, k) -> (k + 1, k + 1); what the environment rewards is not a number."""
    replay, n = Replay(10), len(ends)
    obs = torch.arange(n).float()[:, None].repeat(1, 2)
    raw = torch.full((n, 1, 1), 0.5)
    reward = torch.full((n,), torch.nan)
    replay.add(Transition(obs, raw, raw, reward, torch.tensor(ends).float(), torch.ones(n), obs + 1, raw))
    return replay


def _score(obs: Tensor, raw: Tensor) -> Tensor:
    return 10 * obs[:, 0] + 100 * obs[:, -1] + raw.flatten(1).sum(-1)


def test_absorbing_states_have_a_number_of_their_own() -> None:
    assert absorbing(2, 3).tolist() == [[0, 0, 0, 1]] * 2
    assert living(torch.tensor([[4.0, 5.0]])).tolist() == [[4, 5, 0]]


def test_nothing_terminates_and_an_end_leads_to_the_absorbing_state() -> None:
    b = Endless(_replay(), _score).sample(500)
    over = b.obs[:, -1] == 1
    assert (b.terminated == 0).all()
    assert (b.raw[over] == 0).all()
    assert (b.reward[over] == 100).all()
    assert b.next_obs[over].unique(dim=0).tolist() == b.obs[over].unique(dim=0).tolist() == [[0, 0, 1]]
    for k in range(4):
        row = ~over & (b.obs[:, 0] == k)
        assert b.next_obs[row].unique(dim=0).tolist() == ([[0, 0, 1]] if k == 2 else [[k + 1, k + 1, 0]])
        assert (b.reward[row] == 10 * k + 0.5).all()


def test_absorbing_states_are_drawn_as_often_as_ends() -> None:
    """Two ends among six decisions: each of the eight is drawn as often."""
    b = Endless(_replay((False, True, False, True, False, False)), _score).sample(40_000)
    over = b.obs[:, -1] == 1
    assert abs(over.float().mean() - 2 / 8) < 0.015
    assert abs((~over & (b.obs[:, 0] == 3)).float().mean() - 1 / 8) < 0.01
    assert not (Endless(_replay((False, False)), _score).sample(1_000).obs[:, -1] == 1).any()


def test_all_actions_are_worth_the_same_in_the_absorbing_state() -> None:
    critics = AbsorbingCritics(3, 2, NetConfig(width=8, depth=1, head_gain=1.0))
    action = torch.randn(5, 1, 2)
    gone, here = critics(absorbing(5, 2), action), critics(living(torch.ones(5, 2)), action)
    assert torch.equal(gone, gone[:, :1].expand_as(gone))
    assert len(here[0].unique()) == 5


class Plain:
    """Composition of an actor that sees the two numbers of an observation."""

    def actor_input(self, obs: Tensor, base: Tensor) -> Tensor:
        return obs[:, :2]

    def execute(self, base: Tensor, raw: Tensor) -> Tensor:
        return raw

    critic_action = execute

    def idle(self, base: Tensor) -> Tensor:
        return base


def test_the_learned_value_of_the_end_is_the_endless_sum() -> None:
    """One decision, rewarded by 0.5, then the end, rewarded by 1 for ever.

    With gamma 0.75: behind the end 1 / (1 - 0.75) = 4, in front of it 0.5 + 0.75 * 4 = 3.5.
    """
    torch.manual_seed(0)
    replay, nets = Replay(1), NetConfig(width=32, depth=1)
    one = torch.ones(1)
    replay.add(Transition(torch.ones(1, 2), one.view(1, 1, 1), one.view(1, 1, 1), one, one, one, torch.ones(1, 2),
                          one.view(1, 1, 1)))  # fmt: skip
    source = Endless(replay, lambda obs, raw: 0.5 + 0.5 * obs[:, -1])
    sac = SACConfig(gamma=0.75, tau=0.1, lr=3e-3)
    learner = TD3(TanhGaussian(2, (1, 1), nets), AbsorbingCritics(3, 1, nets), Plain(), sac)
    for _ in range(600):
        learner.update(source.sample(32))
    values = learner.critic(torch.cat([absorbing(1, 2), living(torch.ones(1, 2))]), torch.ones(2, 1, 1))
    torch.testing.assert_close(values.detach(), torch.tensor([[4.0, 3.5]] * 2), atol=0.1, rtol=0)
