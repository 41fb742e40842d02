"""Which of several actions is executed, against a loop over rows; and where the choice enters acting and learning."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from policy_decorator.decorator import DecoratedPolicy, Residual
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.rl.selection import Selection, ValueSelected
from policy_decorator.rl.td3 import TD3, Noisy, TD3Config
from policy_decorator.types import Transition

B, DO, TA, DA, K = 40, 3, 2, 2, 2
NETS = NetConfig(width=16, depth=1, critics=3, head_gain=3.0, log_std_min=-3.0)


def _residual(sees: Any = "obs", scored: Any = "sum") -> Residual:
    return Residual(0.4, sees, scored)


def _critics(residual: Residual) -> Critics:
    return Critics(DO, TA * DA * (2 if residual.critic_sees == "concat" else 1), NETS)


def _uniform(*shape: int) -> Tensor:
    return torch.rand(*shape) * 2 - 1


@pytest.mark.parametrize("scored", ["sum", "concat", "residual"])
@pytest.mark.parametrize("value", ["min", "mean"])
def test_the_best_of_all_by_a_loop(value: Any, scored: Any) -> None:
    residual = _residual(scored=scored)
    critics, obs, base = _critics(residual), torch.randn(B, DO), _uniform(B, TA, DA)
    raw, log_prob = _uniform(K, B, TA, DA), torch.randn(K, B)
    chosen, its_log_prob = Selection(residual, value)(critics, obs, base, raw, log_prob)
    alone = 0
    for i in range(B):
        options = [torch.zeros(TA, DA), *raw[:, i]]
        q = [critics(obs[i : i + 1], residual.critic_action(base[i : i + 1], x[None]))[:, 0] for x in options]
        values = [x.min().item() if value == "min" else x.mean().item() for x in q]
        best = max(range(K + 1), key=lambda k: values[k])
        assert torch.equal(chosen[i], options[best])
        assert its_log_prob[i] == (log_prob[best - 1, i] if best else 0)
        alone += best == 0
    assert 0 < alone < B


def test_the_base_acts_alone_where_nothing_is_better() -> None:
    raw = _uniform(K, B, TA, DA)
    chosen, log_prob = Selection(_residual())(
        lambda obs, action: torch.ones(2, len(obs)), torch.randn(B, DO), _uniform(B, TA, DA), raw, torch.ones(K, B)
    )
    assert not chosen.any()
    assert not log_prob.any()


@pytest.mark.parametrize("sees", ["obs", "obs+base"])
def test_a_policy_never_does_what_its_critics_find_worse_than_the_base(sees: Any) -> None:
    residual = _residual(sees)
    actor = TanhGaussian(DO + (TA * DA if sees == "obs+base" else 0), (TA, DA), NETS)
    critics, window, answer = _critics(residual), torch.randn(B, 1, DO), _uniform(B, TA, DA)
    base = type("Base", (), {"context": 1, "act": lambda self, window: answer})()
    chosen = ValueSelected(actor, critics, Selection(residual))
    act = DecoratedPolicy(base, chosen, replace(residual, actor_sees="obs+base")).act(window)
    always = DecoratedPolicy(base, actor, residual).act(window)
    q, q_base, q_always = (critics(window[:, 0], x).min(dim=0).values for x in (act, answer, always))
    torch.testing.assert_close(q, torch.maximum(q_base, q_always))
    corrected = (act != answer).flatten(1).any(dim=1)
    assert 0 < corrected.sum() < B
    assert torch.equal(act[corrected], always[corrected])


@pytest.mark.parametrize("samples", [1, 3])
def test_exploring_chooses_among_as_many_samples(samples: int) -> None:
    residual = _residual()
    actor, critics = TanhGaussian(DO, (TA, DA), NETS), _critics(residual)
    chosen = ValueSelected(actor, critics, Selection(residual), samples)
    explorer, obs, base = Explorer(chosen, hold=2), torch.randn(B, DO), _uniform(B, TA, DA)
    seen = torch.cat([obs, base.flatten(1)], dim=1)
    raw = explorer(seen)
    assert explorer.noise.shape == (samples, B, TA * DA)
    proposals = torch.stack([actor(obs, noise)[0] for noise in explorer.noise])
    expected, _ = Selection(residual)(critics, obs, base, proposals, torch.zeros(samples, B))
    assert torch.equal(raw, expected)
    assert torch.equal(explorer(seen), raw)  # noise is held, and with it the choice
    assert not torch.equal(explorer(seen), raw)


def test_a_noisy_actor_is_judged_with_its_noise() -> None:
    residual = _residual()
    actor, critics = TanhGaussian(DO, (TA, DA), NETS), _critics(residual)
    chosen = ValueSelected(Noisy(actor, 0.5), critics, Selection(residual))
    obs, base, noise = torch.randn(B, DO), _uniform(B, TA, DA), torch.randn(1, B, TA * DA)
    raw, _ = chosen(torch.cat([obs, base.flatten(1)], dim=1), noise)
    loud = (actor.mode(obs) + 0.5 * noise[0].view(B, TA, DA)).clamp(-1, 1)
    spoke = raw.flatten(1).any(dim=1)
    assert 0 < spoke.sum() < B
    torch.testing.assert_close(raw[spoke], loud[spoke])  # and no noise where the base acts alone


# ---- the target -----------------------------------------------------------------------------------------------


def _batch() -> Transition:
    rows = torch.randn(B, DO), _uniform(B, TA, DA), _uniform(B, TA, DA), -torch.rand(B)
    return Transition(*rows, (torch.rand(B) < 0.3).float(), torch.ones(B), torch.randn(B, DO), _uniform(B, TA, DA))


@pytest.mark.parametrize("learner", ["sac", "td3"])
def test_the_target_counts_on_the_better_of_both(learner: str) -> None:
    residual, cfg = _residual(), SACConfig(gamma=0.9, temperature=0.3)
    actor, critics, b = TanhGaussian(DO, (TA, DA), NETS), _critics(residual), _batch()
    both: list[Any] = [
        SAC(actor, critics, residual, TA * DA, cfg, selection)
        if learner == "sac"
        else TD3(actor, critics, residual, cfg, TD3Config(smoothing_std=0.0), selection)
        for selection in (None, Selection(residual))
    ]
    torch.manual_seed(5)
    raw, log_prob = actor(b.next_obs) if learner == "sac" else (actor.mode(b.next_obs), torch.zeros(B))
    q_base = critics(b.next_obs, b.next_base).min(dim=0).values
    q = critics(b.next_obs, b.next_base + 0.4 * raw).min(dim=0).values
    entropy = -0.3 * log_prob
    current = critics(b.obs, b.base + 0.4 * b.raw)
    assert 0 < (q > q_base).sum() < B
    for one, value in zip(both, (q + entropy, torch.where(q > q_base, q + entropy, q_base)), strict=True):
        goal = b.reward + 0.9 * (1 - b.terminated) * value
        expected = (current - goal).square().mean(dim=1).sum().item()
        torch.manual_seed(5)
        assert one.critic_loss(b)[0].item() == pytest.approx(expected, rel=1e-5)


def test_what_is_chosen_follows_the_critic_as_it_learns() -> None:
    """It holds the learner's networks, not copies of them."""
    residual = _residual()
    actor, critics = TanhGaussian(DO, (TA, DA), NETS), _critics(residual)
    learner = SAC(actor, critics, residual, TA * DA, SACConfig(lr=0.05), Selection(residual))
    chosen = ValueSelected(actor, critics, Selection(residual))
    seen = torch.randn(B, DO + TA * DA)
    before = chosen.mode(seen)
    for _ in range(3):
        learner.update(_batch())
    assert not torch.equal(before, chosen.mode(seen))
    assert cast(Any, chosen).critic is learner.critic
