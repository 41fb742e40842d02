"""GAIL: the discriminator in turn with the policy, what is rewarded, and what is learned from it."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from policy_decorator.demos.record import record_expert
from policy_decorator.envs.toy import TASKS, Reach
from policy_decorator.errors import UserError
from policy_decorator.methods import METHODS, Problem, settings_of
from policy_decorator.methods.alone import Alone
from policy_decorator.methods.gail import Adversarial, Config
from policy_decorator.refine import refine
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.discriminator import DiscriminatorConfig
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig


def _shown(n: int = 40) -> Demonstrated:
    """Two episodes of which the second ends with success; their actions are all (0.5, -0.5)."""
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.rand(n, 4, generator=generator), torch.tensor([[[0.5, -0.5]]]).repeat(n, 1, 1)
    return Demonstrated(obs, action, torch.rand(n, 1, 2), torch.arange(n) == n - 1, torch.tensor([n // 2, n // 2]))


def _build(small: Any, base: nn.Module, shown: Demonstrated | None = None, **changes: Any) -> Adversarial:
    torch.manual_seed(7)
    cfg = replace(settings_of("gail", small), **changes)
    problem = Problem(Reach(4), cast(Any, base), 4, (1, 2), 1000, 100, demonstrated=shown or _shown())
    return cast(Adversarial, METHODS["gail"].build(cfg, problem))


def _collect(run: Adversarial, decisions: int) -> None:
    for _ in range(decisions):
        t, step = run.collector.decide(run.explorer)
        kept = run.intake.push(t, step.done)
        assert kept is not None
        run.replay.add(kept)


def test_rewards_rise_where_it_acts_as_was_shown(small: Any, steady: nn.Module) -> None:
    run = _build(small, steady, discriminator=DiscriminatorConfig(d_width=32, d_steps=50, d_lr=1e-3))
    _collect(run, 50)
    d, obs = replace(run.judge, unit=1.0), torch.rand(200, 4)
    assert run.judge.unit == pytest.approx(0.05)
    assert torch.equal(run.judge.score(obs, obs[:, None, :2]), run.judge.unit * d.score(obs, obs[:, None, :2]))
    score = d.score
    alike, other = torch.tensor([[[0.5, -0.5]]]).repeat(200, 1, 1), torch.tensor([[[-0.5, 0.5]]]).repeat(200, 1, 1)
    before = float((score(obs, alike) - score(obs, other)).mean())
    metrics = [run._tell_apart() for _ in range(4)]
    assert float((score(obs, alike) - score(obs, other)).mean()) > 0.8 > 0.2 > abs(before)  # of at most sqrt(2)
    assert metrics[-1]["gail/told_apart"] > 0.8


def test_a_round_of_the_discriminator_precedes_so_many_updates(small: Any, steady: nn.Module) -> None:
    run = _build(small, steady, discriminator_every=5)
    _collect(run, 10)
    rounds: list[int] = []
    told = type(run)._tell_apart

    def count(self: Adversarial) -> dict[str, torch.Tensor]:
        rounds.append(self.learner.updates)
        return told(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run), "_tell_apart", count)
        for due in (3, 3, 11, 12):  # as train calls it, a few at a time
            run.learn(due)
            assert run.learner.updates == due
    assert rounds == [0, 5, 10]


def test_success_is_not_looked_at(small: Any, steady: nn.Module) -> None:
    run = _build(small, steady, demo_share=0.5)
    _collect(run, 30)
    assert run.replay.data is not None
    run.replay.data.reward.fill_(np.nan)
    batch = run.data.sample(64)
    assert batch.reward.isfinite().all()
    first = batch.decisions == 1
    plain = first & (batch.terminated == 0)
    torch.testing.assert_close(batch.reward[plain], run.judge.score(batch.obs, batch.raw)[plain])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_comes_from_the_demonstrations(share: float, small: Any, steady: nn.Module) -> None:
    run = _build(small, steady, demo_share=share)
    _collect(run, 30)
    batch = run.data.sample(64)
    theirs = (batch.raw == torch.tensor([0.5, -0.5])).flatten(1).all(dim=1)  # its own action, though the base differs
    assert int(theirs.sum()) == 64 * share
    if share:
        assert batch.terminated[theirs].any()
        assert batch.decisions[theirs].max() == 3


@pytest.mark.parametrize("theirs", [True, False])
def test_ends_are_worth_reaching_where_they_were_shown(theirs: bool, small: Any, steady: nn.Module) -> None:
    """Either the demonstrations end, or its own episodes: the absorbing state is judged by who is found in it."""
    success = (torch.arange(40) % 4 == 3) & theirs
    shown = replace(_shown(), success=success, lengths=torch.full((10,), 4))
    d = DiscriminatorConfig(d_width=32, d_lr=1e-3, d_steps=200, gradient_penalty=0.1)
    run = _build(small, steady, shown, discriminator=d)
    _collect(run, 20)
    pairs = run.demonstrated
    ends = [1.0] * 10 if theirs else []  # otherwise the last row of each has no next observation
    assert pairs[:, 4].tolist() == [0.0] * (40 if theirs else 30) + ends
    assert (pairs[40:, :4] == 0).all()
    assert (pairs[40:, 5:] == 0).all()
    assert run.replay.data is not None
    run.replay.data.terminated.fill_(not theirs)
    assert len(run.judge.pairs(run.replay.sample(6))) == (6 if theirs else 12)
    judge = replace(run.judge, unit=1.0)
    before = judge.ended()
    run._tell_apart()
    assert (judge.ended() > before + 0.3) == theirs
    assert (judge.ended() < before - 0.3) != theirs


def test_it_acts_alone(small: Any, steady: nn.Module) -> None:
    run = _build(small, steady)
    _collect(run, 10)
    assert run.collector.base_queries == 0
    assert isinstance(run.policy, Alone)


def test_statistics_of_the_demonstrations_standardise_what_the_discriminator_sees(
    small: Any, steady: nn.Module
) -> None:
    torch.manual_seed(0)
    problem = Problem(
        Reach(4),
        cast(Any, steady),
        4,
        (1, 2),
        100,
        0,
        demonstrated=_shown(),
        obs_statistics=(torch.ones(4), torch.ones(4)),
    )
    run = METHODS["gail"].build(settings_of("gail", small), problem)
    assert cast(Adversarial, run).judge.d.standardize.mean.tolist() == [1.0, 1, 1, 1, 0]


def test_what_it_cannot(small: Any, steady: nn.Module) -> None:
    problem = Problem(Reach(4), cast(Any, steady), 4, (1, 2), 100, 0)
    with pytest.raises(UserError, match="gail learns from demonstrations"):
        METHODS["gail"].build(settings_of("gail", small), problem)
    with pytest.raises(UserError, match="gail has no eyes"):
        METHODS["gail"].build(settings_of("gail", small), replace(problem, shapes={"rgb": (3, 8, 8)}))
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"learner": "ppo"}, "gail learns with sac or td3"),
        ({"discriminator_every": 0}, "discriminator_every must be at least 1"),
        ({"sac": SACConfig(gamma=1.0)}, "gamma below 1"),
    ]
    for changes, reason in contradictions:
        with pytest.raises(UserError, match=reason):
            Config(**changes)
    with pytest.raises(UserError, match="d_lr must be above 0"):
        DiscriminatorConfig(d_lr=0.0)
    with pytest.raises(UserError, match="d_steps must be at least 1"):
        DiscriminatorConfig(d_steps=0)


@pytest.mark.slow
@pytest.mark.parametrize("learns", [True, False])
def test_it_learns_to_reach_from_demonstrations_alone(learns: bool, make_config: Any, steady: nn.Module) -> None:
    """From nothing to nearly every goal; not where the discriminator stays as it was at first."""
    demos = record_expert(TASKS["toy/reach"], 100, seed=500_000, noise=0.3)
    nets = NetConfig(width=64, depth=2, log_std_min=-5.0)
    sac = SACConfig(gamma=0.95, lr=1e-3, batch_size=128, temperature=0.05, entropy_in_backup=False)
    d = DiscriminatorConfig(d_width=64, gradient_penalty=1.0, d_lr=3e-4 if learns else 1e-12)
    learn = Config(n_step=3, demo_share=0.25, nets=nets, sac=sac, discriminator=d)
    config = make_config(total_steps=3_500, eval_every=500, eval_episodes=30, test_episodes=60, warmup_steps=300)
    config = replace(config, method="gail", learn=learn, train=replace(config.train, updates_per_step=0.5))
    refined, _ = refine(config, cast(Any, steady), demos=demos)
    assert (refined.summary["refined_success"] > 0.6) == learns
