"""DIPO on a Diffusion Policy as a method: what it builds, refuses, learns, saves and resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
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
from policy_decorator.methods import METHODS, Problem, Run
from policy_decorator.methods.dipo import Config
from policy_decorator.refined import Refined
from policy_decorator.rl.dipo import DIPO, DIPOConfig
from policy_decorator.rl.lora import LoRAConfig
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.train import TrainConfig

pytest.importorskip("peft", reason="PEFT is not installed")
pytest.importorskip("diffusers")

TINY = DiffusionConfig(context=1, horizon=2, chunk=2, widths=(16,), step_size=16, diffusion_steps=20, ddim_steps=2)
MLP = replace(TINY, network="mlp", mlp_width=64)
QUICK = Config(
    reward_shift=0.0,
    n_step=2,
    nets=NetConfig(width=64, depth=2, critic_layer_norm=True),
    sac=SACConfig(gamma=0.9, lr=2e-3, batch_size=128, tau=0.02, max_grad_norm=2.0),
    dipo=DIPOConfig(action_steps=10),
    lora=LoRAConfig(8, 16),
)


def _run(base: Any, cfg: Config = QUICK, **changes: Any) -> Run:
    chunk = getattr(base, "chunk", 1)
    env = make_vector(TASKS["toy/reach-gym"], 3, context=getattr(base, "context", 1), chunk=chunk)
    given = {"obs_size": 4, "chunk": (chunk, 2), "capacity": 200, "warmup_steps": 0, "seed": 5} | changes
    return METHODS["dipo"].build(cfg, Problem(env=env, base=base, **given))


def _config(total: int, learn: Config = QUICK, **changes: Any) -> RefineConfig:
    train = TrainConfig(
        total_steps=total, warmup_steps=500, steps_per_round=32, updates_per_step=0.125, log_every=500,
        eval_every=total, save_every=total,
    )  # fmt: skip
    given = {"envs": 16, "eval_episodes": 50, "test_episodes": 100, "device": "cpu", "decide": "chunk"} | changes
    return RefineConfig(task="toy/reach-gym", method="dipo", learn=learn, train=train, workers=0, **given)


def test_a_decision_is_a_sample_of_the_base_and_kept_with_all_it_predicted() -> None:
    base = DiffusionPolicy(replace(TINY, context=2, horizon=4), 4, 2)
    run = _run(base, replace(QUICK, n_step=1), warmup_steps=100)
    learner = cast(DIPO, run.learner)
    assert run.knows
    assert learner.memory is run.replay
    before = run.collector.window
    transition, step = run.collector.decide(run.explorer)
    noise = run.explorer.noise.view(3, 4, 2)
    drawn = base.denoise(noise, base.condition(before))
    torch.testing.assert_close(transition.raw, drawn[:, 1:3].clamp(-1, 1))
    kept = run.intake.push(transition, step.done)
    assert kept is not None
    torch.testing.assert_close(kept.base, drawn.clamp(-1, 1))
    assert torch.equal(kept.obs.view(3, 2, 4), before)
    assert run.collector.base_queries == 0


def test_before_the_first_update_it_is_the_base_bit_for_bit() -> None:
    base = DiffusionPolicy(TINY, 4, 2)
    before = {name: x.clone() for name, x in base.state_dict().items()}
    run, window, answers = _run(base), torch.rand(9, 1, 4), []
    for policy in (base, run.policy):
        torch.manual_seed(5)
        answers.append(policy.act(window))  # pyright: ignore
    assert torch.equal(*answers)
    for _ in range(20):
        t, step = run.collector.decide(run.explorer)
        if (kept := run.intake.push(t, step.done)) is not None:
            run.replay.add(kept)
    run.learn(3)
    torch.manual_seed(5)
    assert not torch.equal(run.policy.act(window), answers[0])  # pyright: ignore
    assert all(torch.equal(x, before[name]) for name, x in base.state_dict().items())


def test_what_it_cannot_tune_is_refused(steady: nn.Module) -> None:
    base = DiffusionPolicy(TINY, 4, 2)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (steady, {}, "dipo tunes a Diffusion Policy"),
        (step_by_step(cast(Any, base)), {"chunk": (1, 2)}, "--decide chunk"),
        (base, {"shapes": {"camera": (3, 8, 8)}}, "dipo has no eyes"),
        (DiffusionPolicy(replace(TINY, late_steps=1), 4, 2), {}, "second network"),
    ]
    for given, changes, reason in cases:
        with pytest.raises(UserError, match=reason):
            _run(given, **changes)
    for wrong in ({"learner": "td3"}, {"demo_share": 0.5}):
        with pytest.raises(UserError, match="dipo has a learner of its own"):
            Config(**wrong)  # pyright: ignore
    for wrong in ({"sac": SACConfig(residual_penalty=0.1)}, {"nets": NetConfig(initial_std=0.3)}):
        with pytest.raises(UserError, match="leave out residual_penalty and initial_std"):
            Config(**wrong)
    with pytest.raises(UserError, match="threads = auto"):
        _config(100, threads="auto")


def test_defaults_are_those_of_the_paper_and_of_its_reference() -> None:
    cfg = Config()
    assert (cfg.sac.gamma, cfg.sac.lr, cfg.sac.batch_size, cfg.sac.max_grad_norm) == (0.97, 1e-4, 1024, 2.0)
    assert (cfg.dipo.action_lr, cfg.dipo.action_steps, cfg.dipo.action_grad_norm) == (0.03, 20, 0.1)
    quick = settings("quick", "toy/reach", method="dipo")
    assert (quick.decide, quick.learn.demo_share, quick.learn.noise_hold) == ("chunk", 0.0, 1)
    assert quick.learn.sac.max_grad_norm == 2.0


@pytest.mark.usefixtures("unreported")
def test_what_is_compared_at_the_end_is_what_is_saved(tmp_path: Path) -> None:
    base = imitated(DiffusionPolicy(MLP, 4, 2), steps=200, rows=128, lr=3e-3)
    before = {name: x.clone() for name, x in base.state_dict().items()}
    refined = api.run(replace(_config(700), keep="learned"), base, out=tmp_path / "run")
    assert refined.summary["base_queries"] == 0
    assert all(torch.equal(x, before[name]) for name, x in base.state_dict().items())
    tuned: Any = load_policy(tmp_path / "run" / "refined" / "policy")
    assert isinstance(tuned, DiffusionPolicy)
    assert tuned.cfg == MLP
    env = make_vector(TASKS["toy/reach-gym"], 16, chunk=2)
    window = torch.rand(7, 1, 4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        was = base.act(window)
        torch.manual_seed(1)
        assert not torch.allclose(tuned.act(window), was)
    rates = [run_episodes(env, policy, 100, TEST).rate for policy in (tuned, Refined.load(tmp_path / "run").policy)]
    assert rates == [refined.summary["refined_success"]] * 2


@pytest.mark.usefixtures("unreported")
def test_resumed_is_as_uninterrupted(tmp_path: Path) -> None:
    """The memory of improved sequences too."""
    base = imitated(DiffusionPolicy(MLP, 4, 2), steps=60, rows=128, lr=1e-2)
    quick = replace(QUICK, sac=replace(QUICK.sac, batch_size=16), dipo=DIPOConfig(action_steps=2))
    config = _config(400, quick, envs=4)
    train = replace(config.train, warmup_steps=100, log_every=100, save_every=160, eval_every=200)
    config = replace(config, train=train, eval_episodes=8, test_episodes=8)
    whole = assert_resumed_is_as_uninterrupted(config, base, tmp_path, at=300)
    assert whole["state"]["replay"]["size"] > 50
