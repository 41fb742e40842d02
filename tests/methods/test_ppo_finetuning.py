"""PPO fine-tuning as a method: what it builds, refuses, learns, saves and resumes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from tuned import assert_resumed_is_as_uninterrupted, demonstrated, imitated

from policy_decorator import api
from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.base_policies.checkpoint import load_policy
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.config import RefineConfig
from policy_decorator.envs.toy import TASKS
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError
from policy_decorator.evaluation import TEST, run_episodes
from policy_decorator.methods import METHODS, Problem
from policy_decorator.methods.ppo_finetuning import Config
from policy_decorator.rl.gaussian import GaussianPPO
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.ppo import PPOConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.train import TrainConfig

QUICK = Config(
    nets=NetConfig(width=32, depth=2, initial_std=0.3),
    sac=SACConfig(gamma=0.95, lr=1e-3, max_grad_norm=0.5),
    ppo=PPOConfig(rollout=32, epochs=6, minibatches=4),
    critic_rounds=1,
)


def _mlp(context: int = 1) -> Any:
    policy = MLPPolicy(MLPConfig(width=32, depth=2, context=context, standardize_obs=False), 4, 2)
    return imitated(policy, steps=400, rows=128, lr=3e-3)


def _bet(steps: int = 300) -> Any:
    sizes = BeTConfig(context=2, clusters=4, layers=1, heads=2, width=16, gpt_output=16, dropout=0.05)
    policy = BehaviorTransformer(sizes, 4, 2)
    actions = demonstrated(500, 1)[1][:, 0].numpy()
    demos: Any = SimpleNamespace(actions=actions, observations=None)
    policy.fit_statistics(demos)
    return imitated(policy, steps=steps, rows=128, lr=3e-3)


def _config(total: int, task: str = "toy/reach", **changes: Any) -> RefineConfig:
    train = TrainConfig(total_steps=total, warmup_steps=0, log_every=500, eval_every=total // 2, save_every=total)
    given = {"envs": 32, "eval_episodes": 50, "test_episodes": 100, "device": "cpu", "learn": QUICK} | changes
    return RefineConfig(task=task, method="ppo-finetuning", train=train, workers=0, **given)


@pytest.mark.parametrize("context", [1, 2])
def test_a_decision_is_the_gaussians_sample(context: int) -> None:
    base = MLPPolicy(MLPConfig(context=context), 4, 2)
    env = make_vector(TASKS["toy/reach-gym"], 3, context=context)
    run = METHODS["ppo-finetuning"].build(QUICK, Problem(env, base, 4, (1, 2), 1, 0))
    seen = run.collector.window.flatten(1)
    transition, _ = run.collector.decide(run.explorer)
    assert isinstance(run.learner, GaussianPPO)
    assert run.learner.critic_rounds == 1
    actor = run.learner.actor
    assert torch.equal(transition.obs, seen)
    assert torch.equal(transition.raw, actor(seen, run.explorer.noise)[0])
    assert actor.log_std.exp().tolist() == pytest.approx([0.3, 0.3])
    assert run.collector.base_queries == 0


def test_what_it_cannot_tune_is_refused(steady: nn.Module) -> None:
    env = make_vector(TASKS["toy/reach"], 3)
    with pytest.raises(UserError, match="tunes an mlp or a bet"):
        METHODS["ppo-finetuning"].build(QUICK, Problem(env, steady, 4, (1, 2), 1, 0))  # pyright: ignore
    base = MLPPolicy(MLPConfig(), 4, 2)
    with pytest.raises(UserError, match="--warmup-steps 0"):
        METHODS["ppo-finetuning"].build(QUICK, Problem(env, base, 4, (1, 2), 1, 100))
    with pytest.raises(UserError, match="critic_rounds"):
        Config(critic_rounds=-1)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "task", "total"), [(_mlp, "toy/reach", 20_000), (_bet, "toy/reach-gym", 14_000)])
def test_a_poor_policy_becomes_a_good_one(make: Any, task: str, total: int, tmp_path: Path) -> None:
    base = make()
    refined = api.run(_config(total, task), base, out=tmp_path / "run")
    assert refined.summary["base_success"] < 0.5
    assert refined.summary["refined_success"] > 0.8
    tuned: Any = load_policy(tmp_path / "run" / "refined" / "policy")
    assert type(tuned) is type(base)
    env = make_vector(TASKS[task], 32, context=base.context)
    assert run_episodes(env, tuned, 100, TEST).rate == refined.summary["refined_success"]


@pytest.mark.usefixtures("unreported")
def test_resumed_is_as_uninterrupted(tmp_path: Path) -> None:
    learn = replace(QUICK, ppo=PPOConfig(rollout=15, epochs=1, minibatches=2))
    config = _config(400, "toy/reach-gym", learn=learn, envs=4, eval_episodes=8, test_episodes=8)
    config = replace(config, train=replace(config.train, log_every=100, save_every=160))
    whole = assert_resumed_is_as_uninterrupted(config, _mlp(context=2), tmp_path, at=250)
    assert whole["state"]["intake"]
