"""DPPO as a method: what it builds, refuses, learns, saves and resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from tuned import assert_resumed_is_as_uninterrupted, imitated

from policy_decorator import api
from policy_decorator.base_policies.checkpoint import load_policy
from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy
from policy_decorator.chunks import step_by_step
from policy_decorator.config import RefineConfig
from policy_decorator.envs.toy import TASKS
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError
from policy_decorator.evaluation import TEST, run_episodes
from policy_decorator.experiments.presets import settings
from policy_decorator.methods import METHODS, Problem, Run, settings_of
from policy_decorator.methods.dppo import Config
from policy_decorator.methods.policy_decorator import Config as ResidualConfig
from policy_decorator.refined import Refined
from policy_decorator.rl.dppo import DPPO, Chains, DPPOConfig
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.ppo import PPOConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.train import TrainConfig

pytest.importorskip("diffusers")

TINY = DiffusionConfig(context=1, horizon=2, chunk=2, widths=(16,), step_size=16, diffusion_steps=20, ddim_steps=2)
MLP = replace(TINY, network="mlp", mlp_width=64)
QUICK = Config(
    nets=NetConfig(width=32, depth=2),
    sac=SACConfig(gamma=0.95, lr=1e-3),
    ppo=PPOConfig(rollout=16, epochs=5, minibatches=4, clip=0.1, target_kl=None),
    dppo=DPPOConfig(sampling_std=0.2, density_std=0.2, clip_smallest=0.1, critic_rounds=1, critic_lr=3e-3),
)


def _problem(base: Any, **changes: Any) -> Problem:
    env = make_vector(TASKS["toy/reach-gym"], 3, context=base.context, chunk=base.chunk)
    given = {"obs_size": 4, "chunk": (base.chunk, 2), "capacity": 1, "warmup_steps": 0, "seed": 5} | changes
    return Problem(env=env, base=base, **given)


def _run(base: Any, cfg: Config = QUICK, **changes: Any) -> Run:
    return METHODS["dppo"].build(cfg, _problem(base, **changes))


def _config(total: int, learn: Config = QUICK, **changes: Any) -> RefineConfig:
    train = TrainConfig(total_steps=total, warmup_steps=0, log_every=500, eval_every=total, save_every=500)
    given = {"envs": 32, "eval_episodes": 50, "test_episodes": 100, "device": "cpu", "decide": "chunk"} | changes
    return RefineConfig(task="toy/reach-gym", method="dppo", learn=learn, train=train, workers=0, **given)


def test_a_decision_is_a_chain_whose_end_is_executed() -> None:
    base = DiffusionPolicy(replace(TINY, context=2, horizon=4), 4, 2)
    run = _run(base)
    before = run.collector.window
    transition, step = run.collector.decide(run.explorer)
    assert isinstance(run.intake, Chains)
    assert isinstance(run.learner, DPPO)
    chain = run.learner.denoising.chain
    assert chain.shape == (3, 3, 4, 2)
    assert torch.equal(transition.raw, chain[:, -1, 1:3])
    assert torch.equal(transition.obs.view(3, 2, 4), before)
    run.intake.push(transition, step.done)
    assert torch.equal(run.intake.decisions[0][0].raw, chain)
    assert run.collector.base_queries == 0


@pytest.mark.parametrize("ends", [True, False])
def test_success_is_rewarded_once_or_as_long_as_it_lasts(ends: bool) -> None:
    """With an episode's end at success there is one reward, and no value behind it; without, one per chunk."""
    task = TASKS["toy/reach-gym"].with_episodes(None, ends)
    base = DiffusionPolicy(TINY, 4, 2)
    run = METHODS["dppo"].build(QUICK, replace(_problem(base), env=make_vector(task, 3, chunk=2)))

    def expert(seen: Tensor) -> Tensor:
        return ((seen[:, 2:] - seen[:, :2]) / 0.4).clamp(-1, 1)[:, None].expand(-1, 2, -1)

    told = [run.collector.decide(expert) for _ in range(13)]
    reward, terminated = (torch.stack([getattr(t, name) for t, _ in told]) for name in ("reward", "terminated"))
    assert set(reward.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(terminated, reward) if ends else terminated.sum() == 0
    if not ends:
        assert reward[:, 0].tolist() == sorted(reward[:, 0].tolist())
        assert reward[:, 0].sum() > 3


def test_what_it_cannot_tune_is_refused(steady: nn.Module) -> None:
    base = DiffusionPolicy(TINY, 4, 2)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (steady, {"chunk": (1, 2)}, "train one with `pidec imitate diffusion`"),
        (step_by_step(cast(Any, base)), {"chunk": (1, 2)}, "--decide chunk"),
        (base, {"warmup_steps": 100}, "--warmup-steps 0"),
        (base, {"shapes": {"camera": (3, 8, 8)}}, "dppo has no eyes"),
    ]
    if not hasattr(steady, "chunk"):
        cast(Any, steady).chunk = 1
    for given, changes, reason in cases:
        with pytest.raises(UserError, match=reason):
            _run(given, **changes)
    with pytest.raises(UserError, match="leave out learner, n_step"):
        Config(learner="sac", n_step=3)
    with pytest.raises(UserError, match="threads = auto"):
        _config(100, threads="auto")


def test_settings_of_a_preset_that_mean_something_else_are_not_taken_over() -> None:
    residual = ResidualConfig(n_step=10, demo_share=0.2, sac=SACConfig(gamma=0.5), nets=NetConfig(width=17))
    learn = settings_of("dppo", residual)
    assert learn == Config(nets=NetConfig(width=17))
    config = settings("quick", "toy/reach", method="dppo")
    assert (config.decide, config.train.warmup_steps, config.learn.reward_shift) == ("chunk", 0, 0.0)
    assert config.learn.sac.gamma == 0.999


def test_defaults_are_those_for_square() -> None:
    cfg = Config()
    assert (cfg.sac.gamma, cfg.sac.lr, cfg.dppo.critic_lr) == (0.999, 1e-4, 1e-3)
    ppo = cfg.ppo
    assert (ppo.rollout, ppo.epochs, ppo.minibatches, ppo.gae_lambda, ppo.clip) == (400, 10, 20, 0.95, 0.01)
    assert (ppo.target_kl, cfg.reward_shift) == (1.0, 0.0)
    dppo = cfg.dppo
    assert (dppo.tuned_steps, dppo.sampling_std, dppo.density_std, dppo.noise_limit) == (10, 0.1, 0.1, 3.0)
    assert (dppo.gamma_denoise, dppo.clip_smallest, dppo.clip_growth, dppo.critic_rounds) == (0.99, 0.001, 3.0, 2)
    assert (dppo.scale_gamma, dppo.reward_limit) == (0.99, 10.0)


# ---- learning -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ends", [True, False])
def test_a_poor_diffusion_policy_becomes_a_good_one(ends: bool, tmp_path: Path) -> None:
    base = imitated(DiffusionPolicy(MLP, 4, 2), steps=600, rows=128, lr=3e-3)
    before = {name: x.clone() for name, x in base.state_dict().items()}
    config = _config(14_000, ends_at_success=ends)
    refined = api.run(config, base, out=tmp_path / "run")
    assert refined.summary["refined_success"] > 0.9
    assert refined.summary["base_success"] < 0.5
    assert refined.summary["base_queries"] == 0
    assert all(torch.equal(x, before[name]) for name, x in base.state_dict().items())

    tuned = load_policy(tmp_path / "run" / "refined" / "policy")
    assert isinstance(tuned, DiffusionPolicy)
    assert tuned.cfg == MLP
    again = Refined.load(tmp_path / "run").policy
    env = make_vector(TASKS["toy/reach-gym"].with_episodes(None, ends), 32, chunk=2)
    rates = [run_episodes(env, cast(Any, policy), 100, TEST).rate for policy in (tuned, again)]
    assert rates == [refined.summary["refined_success"]] * 2


@pytest.mark.usefixtures("unreported")
def test_resumed_is_as_uninterrupted(tmp_path: Path) -> None:
    """In the middle of a rollout, by DDPM, with two of four steps tuned."""
    cfg = replace(TINY, sampler="ddpm", diffusion_steps=4, ddim_steps=1)
    base = imitated(DiffusionPolicy(cfg, 4, 2), steps=60, rows=128, lr=1e-2)
    ppo = replace(QUICK.ppo, rollout=15, epochs=1, minibatches=2)
    learn = replace(QUICK, ppo=ppo, dppo=replace(QUICK.dppo, tuned_steps=2))
    config = _config(500, learn, envs=4, eval_episodes=8, test_episodes=8)
    config = replace(config, train=replace(config.train, log_every=100, save_every=160))
    whole = assert_resumed_is_as_uninterrupted(config, base, tmp_path, at=300)
    assert whole["state"]["intake"]
    tuned: Any = load_policy(tmp_path / "cut" / "refined" / "policy")
    assert (tuned.cfg.late_steps, tuned.cfg.acting_steps) == (2, 4)
    assert all(torch.equal(p, q) for p, q in zip(tuned.unet.parameters(), base.unet.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(tuned.late.parameters(), base.unet.parameters(), strict=True))
