"""A residual that is introduced by its scale: it speaks at every decision, at first in silence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from interrupted import Interrupted
from torch import nn

from policy_decorator import api
from policy_decorator.config import RefineConfig
from policy_decorator.decorator import ProgressiveExploration, Residual
from policy_decorator.envs.toy import BiasedController
from policy_decorator.errors import UserError
from policy_decorator.progress import Silent
from policy_decorator.refine import Refinement, refine
from policy_decorator.refined import Refined
from policy_decorator.rl.auto import MeasuredExploration
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import NetConfig, TanhGaussian
from policy_decorator.rl.scale import ProgressiveScale
from policy_decorator.runlog import RunFolder

MakeConfig = Callable[..., RefineConfig]
ROWS = torch.zeros(4, dtype=torch.long)


@pytest.fixture
def actor() -> TanhGaussian:
    return TanhGaussian(3, (2, 2), NetConfig(width=8, depth=1, head_gain=1.0))


@pytest.fixture
def by_scale(make_config: MakeConfig) -> MakeConfig:
    def make(horizon: int | str = 400, **changes: Any) -> RefineConfig:
        config = make_config(**changes)
        learn: Any = replace(config.learn, horizon=horizon, introduced_by="scale", base_only_warmup=True)
        return replace(config, learn=learn)

    return make


# ---- the actor ------------------------------------------------------------------------------------------------


def test_the_scale_multiplies_what_is_answered_and_leaves_densities(actor: TanhGaussian) -> None:
    seen, noise = torch.randn(16, 3), torch.randn(16, 4)
    (raw, density), mode = actor(seen, noise), actor.mode(seen)
    actor.scale.fill_(0.25)
    (quiet, same), quiet_mode = actor(seen, noise), actor.mode(seen)
    torch.testing.assert_close(quiet, raw / 4)
    torch.testing.assert_close(quiet_mode, mode / 4)
    torch.testing.assert_close(same, density, rtol=0, atol=0)


def test_at_scale_zero_the_base_acts_bit_for_bit(actor: TanhGaussian) -> None:
    base = torch.randn(16, 2, 2)
    actor.scale.zero_()
    assert torch.equal(Residual(0.7).execute(base, actor(torch.randn(16, 3))[0]), base)


def test_a_file_from_before_there_was_a_scale_is_read(actor: TanhGaussian) -> None:
    state, seen = actor.state_dict(), torch.randn(4, 3)
    wanted = actor.mode(seen)
    del state["scale"]
    other = TanhGaussian(3, (2, 2), actor.cfg)
    other.scale.fill_(0.5)
    other.load_state_dict(state)
    assert torch.equal(other.mode(seen), wanted)
    assert "scale" not in state


# ---- the gate -------------------------------------------------------------------------------------------------


def test_it_is_open_at_every_decision_once_epsilon_is_above_zero(actor: TanhGaussian) -> None:
    gate = ProgressiveScale(ProgressiveExploration(1000, start=100), actor)
    assert actor.scale == 0
    for step, epsilon in ((0, 0.0), (100, 0.0), (350, 0.25), (1100, 1.0), (9000, 1.0)):
        assert gate(step, ROWS).tolist() == [epsilon > 0] * 4
        assert actor.scale.item() == gate.epsilon(step) == epsilon


def test_the_scale_follows_what_is_measured(actor: TanhGaussian) -> None:
    measured = MeasuredExploration(Monitor(), 100, 1000)
    gate = ProgressiveScale(measured, actor)
    measured.monitor.note([True] * 25)
    gate(100, ROWS)
    gate(600, ROWS)
    assert actor.scale.item() == pytest.approx(0.5)
    measured.monitor.note([False] * 25)
    gate(800, ROWS)
    assert actor.scale.item() == pytest.approx(0.3)
    other = ProgressiveScale(MeasuredExploration(measured.monitor, 100, 1000), actor)
    other.restore(gate.state())
    assert other.epsilon(800) == gate.epsilon(800)
    assert (other.horizon, ProgressiveScale(ProgressiveExploration(7), actor).horizon) == ("auto", 7)


# ---- whole runs -----------------------------------------------------------------------------------------------


def test_what_is_executed_grows_with_epsilon(by_scale: MakeConfig) -> None:
    session = Refinement(by_scale(), BiasedController(), None)
    c, actor = session.run.collector, cast(TanhGaussian, session.run.learner.actor)
    with torch.no_grad():
        actor.net.head.bias[..., :2] = 9.0  # it always wants all it can have
    for step, scale in ((0, 0.0), (100, 0.0), (200, 0.25), (300, 0.5), (500, 1.0)):
        c.step, base = step, c.action
        t, _ = c.decide(actor.mode)
        torch.testing.assert_close(t.raw, torch.full_like(base, scale), rtol=1e-4, atol=0)
    session.close()


def test_the_policy_that_is_evaluated_is_the_one_that_acts(
    tmp_path: Path, by_scale: MakeConfig, steady: nn.Module
) -> None:
    folder = RunFolder.create(tmp_path / "run", config := by_scale(horizon=1000), tensorboard=False)
    refined, comparison = refine(config, steady, folder)  # pyright: ignore[reportArgumentType]
    assert {line["name"] for line in folder.evaluations()} == {"base", "full", "final"}
    curve = [line for line in folder.metrics() if "eval/full" in line]
    assert all(line["eval/full"] == line["eval/behaviour"] for line in curve)
    step = refined.summary["kept_checkpoint_step"]
    kept: Any = refined.policy.actor
    assert kept.scale.item() == pytest.approx(max(step - 100, 0) / 1000, abs=0.02)
    assert (refined.summary["bound"], refined.summary["horizon"]) == (0.5, 1000)
    again = Refined.load(tmp_path / "run", policy=steady)
    assert again.policy.actor.scale == kept.scale  # pyright: ignore[reportAttributeAccessIssue]
    obs = np.array([0.1, 0.2, -0.3, 0.4], np.float32)
    np.testing.assert_array_equal(again.act(obs), refined.act(obs))
    assert len(comparison.refined.episodes.success) == 12


def test_where_no_residual_did_better_the_base_is_handed_over(
    by_scale: MakeConfig, steady: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = by_scale(horizon=10, total_steps=400, eval_every=100, eval_episodes=20, test_episodes=20)
    wild = replace(config.learn.nets, head_gain=100.0)  # an untrained residual that throws the base off
    learn = replace(config.learn, bound=2.0, nets=wild, sac=replace(config.learn.sac, lr=1e-6))
    said: list[str] = []
    display = Silent()
    monkeypatch.setattr(display, "say", said.append)
    refined, comparison = refine(replace(config, learn=learn), steady, display=display)  # pyright: ignore[reportArgumentType]
    assert any("the base is handed over" in text for text in said)
    assert refined.summary["kept_checkpoint_step"] == 0
    assert refined.summary["gain"] == 0
    assert comparison.base.episodes.env_steps.tolist() == comparison.refined.episodes.env_steps.tolist()
    by_chance = replace(config, learn=replace(learn, introduced_by="chance"), keep="learned")
    last, _ = refine(by_chance, steady)  # pyright: ignore[reportArgumentType]
    assert last.summary["gain"] < -0.1, "else nothing was there to be refused"


def test_resumed_is_as_uninterrupted(tmp_path: Path, by_scale: MakeConfig, noisy: nn.Module, unreported: None) -> None:
    config = by_scale("auto", total_steps=900, save_every=220)
    learn: Any = replace(config.learn, opening_steps=300)
    config = replace(config, learn=learn)
    api.run(config, noisy, out=tmp_path / "whole", force=True)
    with pytest.raises(KeyboardInterrupt):
        api.run(config, noisy, out=tmp_path / "cut", force=True, display=Interrupted(700))
    api.run(config, noisy, out=tmp_path / "cut", resume=True)
    whole, cut = (RunFolder.open(tmp_path / name) for name in ("whole", "cut"))
    one, two = ([{k: v for k, v in x.items() if k != "wall_seconds"} for x in f.metrics()] for f in (whole, cut))
    assert one == two
    assert max(line["train/epsilon"] for line in one) > 0
    learned = [(f.path / "refined" / "residual.safetensors").read_bytes() for f in (whole, cut)]
    assert learned[0] == learned[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": "td3"}, "needs learner = sac"),
        ({"select_by_value": "acting"}, "needs learner = sac"),
        ({"base_only_warmup": False}, "needs base_only_warmup"),
    ],
)
def test_what_it_cannot_be_combined_with_is_said(changes: dict[str, Any], message: str, by_scale: MakeConfig) -> None:
    with pytest.raises(UserError, match=message):
        replace(by_scale().learn, **changes)
