"""DAC: its settings, whose batches it learns from, and what it learns."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from policy_decorator.demos.record import record_expert
from policy_decorator.envs.toy import TASKS, Reach
from policy_decorator.errors import UserError
from policy_decorator.methods import METHODS, Problem, settings_of
from policy_decorator.methods.alone import Alone
from policy_decorator.methods.dac import Config
from policy_decorator.methods.gail import Adversarial
from policy_decorator.refine import refine
from policy_decorator.rl.absorbing import AbsorbingCritics, Endless
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.discriminator import DiscriminatorConfig
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.td3 import TD3, TD3Config


def _shown(n: int = 40) -> Demonstrated:
    """Two episodes of which the second ends with success."""
    obs, action = torch.rand(n, 4), torch.tensor([[[0.5, -0.5]]]).repeat(n, 1, 1)
    return Demonstrated(obs, action, torch.rand(n, 1, 2), torch.arange(n) == n - 1, torch.tensor([n // 2, n // 2]))


def _build(small: Any, base: nn.Module, **given: Any) -> Adversarial:
    problem = Problem(Reach(4), cast(Any, base), 4, (1, 2), 1000, 100, demonstrated=_shown())
    return cast(Adversarial, METHODS["dac"].build(settings_of("dac", small), replace(problem, **given)))


def _collect(run: Adversarial, decisions: int) -> None:
    for _ in range(decisions):
        t, step = run.collector.decide(run.explorer)
        kept = run.intake.push(t, step.done)
        assert kept is not None
        run.replay.add(kept)


def test_a_preset_leaves_it_what_makes_it_what_it_is(small: Any) -> None:
    nets = replace(small.nets, initial_std=0.3)
    cfg = cast(Any, settings_of("dac", replace(small, n_step=5, demo_share=0.25, noise_hold=3, nets=nets)))
    assert (cfg.learner, cfg.n_step, cfg.demo_share) == ("td3", 1, 0.0)
    assert (cfg.noise_hold, cfg.sac, cfg.nets) == (3, small.sac, small.nets)
    of_gail = settings_of("gail", small)
    assert cast(Any, settings_of("dac", of_gail)).discriminator == Config().discriminator
    assert cfg.discriminator_every == cfg.discriminator.d_steps  # a step of D for one of the policy


def test_critics_see_whether_it_is_over_and_the_actor_does_not(small: Any, steady: nn.Module) -> None:
    statistics = torch.ones(4), torch.ones(4)
    run = _build(replace(small, standardize_obs=True), steady, obs_statistics=statistics)
    _collect(run, 20)
    assert isinstance(run.learner, TD3)
    critic = cast(AbsorbingCritics, run.learner.critic)
    assert critic.standardize.mean.tolist() == [1, 1, 1, 1, 0]
    assert run.learner.actor.standardize.mean.tolist() == [1, 1, 1, 1]
    assert run.judge.d.standardize.mean.tolist() == [1, 1, 1, 1, 0]
    assert run.replay.data is not None
    run.replay.data.reward.fill_(torch.nan)
    assert isinstance(run.data, Endless)
    batch = run.data.sample(64)
    assert batch.obs.shape == batch.next_obs.shape == (64, 5)
    torch.testing.assert_close(batch.reward, run.judge.rewards(batch.obs, batch.raw))
    run.learn(3)
    assert run.learner.updates == 3
    assert all(p.isfinite().all() for p in run.learner.actor.parameters())
    assert {"gail/reward", "gail/ended", "loss/discriminator"} <= run.monitor.learning.keys()


def test_it_acts_alone(small: Any, steady: nn.Module) -> None:
    run = _build(small, steady)
    _collect(run, 10)
    assert run.collector.base_queries == 0
    assert isinstance(run.policy, Alone)
    assert run.policy.act(torch.rand(3, 1, 4)).shape == (3, 1, 2)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"learner": "sac"}, "take gail for sac"),
        ({"n_step": 3}, "single decisions"),
        ({"demo_share": 0.5}, "single decisions"),
        ({"sac": SACConfig(gamma=1.0)}, "gamma below 1"),
        ({"discriminator_every": 0}, "discriminator_every must be at least 1"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Config(**changes)


def test_what_it_needs(small: Any, steady: nn.Module) -> None:
    with pytest.raises(UserError, match="dac learns from demonstrations"):
        _build(small, steady, demonstrated=None)
    with pytest.raises(UserError, match="dac has no eyes"):
        _build(small, steady, shapes={"rgb": (3, 8, 8)})


@pytest.mark.slow
@pytest.mark.parametrize("learns", [True, False])
def test_it_learns_to_reach_from_demonstrations_alone(learns: bool, make_config: Any, steady: nn.Module) -> None:
    """Seeds 0 to 4: 0.43 to 0.70; 0.00 where the discriminator stays as it was at first."""
    demos = record_expert(TASKS["toy/reach"], 100, seed=500_000, noise=0.3)
    sac = SACConfig(gamma=0.8, tau=0.05, lr=2e-3, batch_size=64, actor_every=2)
    d = DiscriminatorConfig(d_width=64, d_steps=16, d_batch=128, gradient_penalty=0.03, d_lr=1e-3 if learns else 1e-12)
    nets, td3 = NetConfig(width=64, depth=2), TD3Config(exploration_std=0.3)
    learn = Config(nets=nets, sac=sac, td3=td3, discriminator=d)
    steps = 2_000 if learns else 600
    config = make_config(total_steps=steps, eval_every=1_000, eval_episodes=30, test_episodes=60, warmup_steps=300)
    config = replace(config, method="dac", learn=learn, train=replace(config.train, updates_per_step=1.0))
    refined, _ = refine(config, cast(Any, steady), demos=demos)
    assert (refined.summary["refined_success"] > 0.2) == learns
