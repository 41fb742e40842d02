"""The table of methods, and what each builds."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from policy_decorator.base_policies import build
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.decorator import DecoratedPolicy, ProgressiveExploration, Residual
from policy_decorator.envs.toy import Reach
from policy_decorator.errors import UserError
from policy_decorator.experiments.presets import settings
from policy_decorator.methods import METHODS, Problem, Run, settings_of
from policy_decorator.methods.on_policy import OnPolicyRun
from policy_decorator.methods.policy_decorator import Config, ResidualConfig
from policy_decorator.rl.auto import MeasuredExploration, bound_of
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.replay import NStep
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.selection import Selection, ValueSelected
from policy_decorator.rl.td3 import TD3, TD3Config
from policy_decorator.snapshot import capture
from policy_decorator.train import TrainConfig, train

RHYTHM = TrainConfig(total_steps=300, warmup_steps=100, steps_per_round=16, updates_per_step=0.25)


def _build(method: str, cfg: Config, base: Any, **options: Any) -> Run:
    torch.manual_seed(7)
    given = {"obs_size": 4, "chunk": (1, 2), "capacity": 1000, "warmup_steps": 100} | options
    return METHODS[method].build(settings_of(method, cfg), Problem(Reach(4), base, **given))


def _train(run: Run) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []

    def log(metrics: Any) -> None:
        lines.append({name: value.item() for name, value in metrics.items()} | run.monitor.read())

    train(replace(RHYTHM, log_every=16), run, log, lambda: None, lambda: None)
    return lines


def _flat(x: Any) -> list[Any]:
    """Every tensor and number in nested containers."""
    if isinstance(x, dict):
        return [leaf for key in x for leaf in _flat(x[key])]
    if isinstance(x, list | tuple):
        return [leaf for item in x for leaf in _flat(item)]
    return [x.tolist() if isinstance(x, torch.Tensor) else x]


def test_residual_rl_is_policy_decorator_with_nothing_controlled_bit_for_bit(small: Config, noisy: nn.Module) -> None:
    logs, states = [], []
    for method, changes in (
        ("residual-rl", {"bound": 0.2, "horizon": 5000}),  # which it does not listen to
        ("policy-decorator", {"bound": 1.0, "horizon": 0}),
        ("policy-decorator", {"bound": 1.0, "horizon": 50}),
    ):
        run = _build(method, replace(small, **changes), noisy)
        logs.append(_train(run))
        states.append(_flat(capture(run)))
    assert len(logs[0]) == 18
    assert logs[0] == logs[1]
    assert states[0] == states[1]
    assert states[0] != states[2]  # the comparison is able to fail


TUNING = {"dppo", "ppo-finetuning", "sac-lora", "dipo"}
"""Methods that know what is inside the base: they have tests of their own."""


@pytest.mark.parametrize("method", [name for name in METHODS if name not in TUNING])
def test_every_method_trains_and_hands_over_a_policy(method: str, small: Config, steady: nn.Module) -> None:
    assert METHODS[method].name == method
    assert METHODS[method].summary
    base: Any = build("mlp", 4, 2, MLPConfig(width=16, depth=1)) if method == "rot" else steady
    run = _build(method, small, base, demonstrated=_demonstrated())
    before = [p.clone() for p in run.learner.actor.parameters()]
    _train(run)
    on_policy = isinstance(run, OnPolicyRun)
    assert run.learner.updates == (1 if on_policy else 50)  # a round; a quarter of 300 - 100
    assert any(not torch.equal(p, q) for p, q in zip(before, run.learner.actor.parameters(), strict=True))
    window = torch.randn(5, 1, 4)
    action = run.policy.act(window)
    assert action.shape == (5, 1, 2)
    assert not torch.equal(action, base.act(window))  # what it hands over is what has learned


@pytest.mark.parametrize("preset", ["quick", "fast", "paper"])
@pytest.mark.parametrize("method", METHODS)
def test_a_preset_leaves_every_method_what_is_its_own(method: str, preset: str) -> None:
    """What pulls a residual to the base would pull a policy that acts alone to no action at all."""
    learn, own = settings(preset, "adroit/door", method=method).learn, METHODS[method].config()
    assert {name: getattr(learn, name) for name in learn.OWN} == {name: getattr(own, name) for name in own.OWN}
    residual = method in ("policy-decorator", "residual-rl")
    assert learn.sac.residual_penalty == (0.01 if residual and preset == "fast" else 0)
    if not isinstance(learn, ResidualConfig):
        assert learn.sac.target_entropy == -1
    if learn.uses_demonstrations and not isinstance(learn, ResidualConfig):
        assert not learn.asks_about_demonstrations


@pytest.mark.parametrize("sees", ["obs", "obs+base"])
@pytest.mark.parametrize("scored", ["sum", "concat", "residual"])
def test_every_choice_of_what_the_networks_see_trains(sees: Any, scored: Any, small: Config, steady: nn.Module) -> None:
    run = _build("policy-decorator", replace(small, actor_sees=sees, critic_sees=scored), steady)
    actor, critic = cast(TanhGaussian, run.learner.actor), cast(Critics, run.learner.critic)
    assert actor.net.first.weight.shape[2] == 4 + 2 * (sees == "obs+base")
    assert critic.net.first.weight.shape == (2, 16, 4 + 2 + 2 * (scored == "concat"))
    _train(run)
    assert all(p.isfinite().all() for p in actor.parameters())


def test_the_settings_reach_their_parts(small: Config, steady: nn.Module) -> None:
    cfg = replace(small, bound=0.25, horizon=300, n_step=2, reward_shift=-0.5)
    run = _build("policy-decorator", cfg, steady, seed=77, capacity=123)
    collector = run.collector
    assert collector.composition == Residual(0.25)
    assert collector.gate == ProgressiveExploration(300, 0)
    assert (collector.reward_shift, collector.seed) == (-0.5, 77)
    assert isinstance(run.intake, NStep)
    assert (run.intake.n, run.intake.gamma, run.replay.capacity) == (2, cfg.sac.gamma, 123)
    assert torch.equal(collector.window, Reach(4).reset(77))
    assert run.data is run.replay
    late = _build("policy-decorator", replace(cfg, base_only_warmup=True), steady)
    assert late.collector.gate == ProgressiveExploration(300, 100)


@pytest.mark.parametrize("standardize", [False, True])
def test_statistics_standardize_both_networks_if_wanted(standardize: bool, small: Config, steady: nn.Module) -> None:
    statistics = torch.arange(4.0), torch.arange(4.0) + 1
    cfg = replace(small, standardize_obs=standardize, actor_sees="obs+base")
    run = _build("policy-decorator", cfg, steady, obs_statistics=statistics)
    actor, critic = cast(TanhGaussian, run.learner.actor), cast(Critics, run.learner.critic)
    expected = [0.0, 1, 2, 3] if standardize else [0.0] * 4
    assert actor.standardize.mean.tolist() == [*expected, 0, 0]  # base actions pass as they are
    assert critic.standardize.mean.tolist() == expected
    target = cast(Critics, run.learner.target)
    assert target.standardize.mean.tolist() == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sac": SACConfig(critic_subset=3)}, "critic_subset must be between 1 and the number of critics"),
        ({"sac": SACConfig(critic_subset=0)}, "critic_subset must be between 1 and the number of critics"),
        ({"demo_share": 0.5, "demo_share_end": 0.1}, "demo_share_end and demo_share_steps go together"),
        ({"demo_share": 0.5, "demo_share_steps": 10}, "demo_share_end and demo_share_steps go together"),
        ({"demo_share_end": 0.1, "demo_share_steps": 10}, "demo_share_end needs a demo_share"),
        ({"learner": "td3", "nets": NetConfig(initial_std=0.1)}, "initial_std is of sac"),
        ({"select_samples": 2}, "select_samples needs select_by_value"),
        ({"select_samples": 2, "select_by_value": "evaluation"}, "select_samples needs select_by_value"),
    ],
)
def test_contradictions_are_refused_at_once(changes: dict[str, Any], reason: str, small: Config) -> None:
    with pytest.raises(UserError, match=reason):
        replace(small, **changes)


def test_td3_shares_the_settings_of_sac_and_explores_with_its_own_noise(small: Config, steady: nn.Module) -> None:
    cfg = replace(small, learner="td3", td3=TD3Config(exploration_std=0.0), noise_hold=3)
    run = _build("policy-decorator", cfg, steady)
    assert isinstance(run.learner, TD3)
    assert (run.learner.cfg, run.learner.noise, run.explorer.hold) == (cfg.sac, cfg.td3, 3)
    seen = torch.randn(4, 4)
    actor = cast(TanhGaussian, run.learner.actor)
    assert torch.equal(run.explorer(seen), actor.mode(seen))
    lines = _train(run)
    assert run.learner.updates == 50
    assert "sac/temperature" not in lines[-1]


@pytest.mark.parametrize("learner", ["sac", "td3"])
@pytest.mark.parametrize(
    ("where", "training", "evaluation", "target"),
    [
        ("never", False, False, False),
        ("training", True, False, False),
        ("evaluation", False, True, False),
        ("acting", True, True, False),
        ("acting+target", True, True, True),
    ],
)
def test_values_choose_where_they_are_asked_to(
    where: Any, training: bool, evaluation: bool, target: bool, learner: Any, small: Config, steady: nn.Module
) -> None:
    run = _build("policy-decorator", replace(small, select_by_value=where, learner=learner), steady)
    policy, parts = cast(DecoratedPolicy, run.policy), cast(Any, run.learner)
    assert isinstance(run.explorer.actor, ValueSelected) == training
    assert isinstance(policy.actor, ValueSelected) == evaluation
    assert parts.selection == (Selection(Residual(0.5)) if target else None)
    for part, selected in ((run.collector.composition, training), (policy.composition, evaluation)):
        assert part == Residual(0.5, "obs+base" if selected else "obs")
    _train(run)
    assert run.replay.data is not None
    spoke = run.replay.data.raw[150 : run.replay.size].flatten(1).any(dim=1)  # epsilon is 1 there
    assert spoke.any()
    assert spoke.all() == (not training)  # the base was the better one now and then


def _demonstrated(n: int = 40) -> Demonstrated:
    """One episode whose rows are known by an observation that no environment gives."""
    rows, actions = torch.full((n, 4), 9.0), torch.rand(n, 1, 2) * 2 - 1
    return Demonstrated(rows, actions, torch.zeros(n, 1, 2), torch.arange(n) == n - 1, torch.tensor([n]))


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({}, {0: 16, 100: 16, 900: 16}),
        ({"demo_share_end": 0.0, "demo_share_steps": 400}, {0: 16, 100: 16, 200: 12, 300: 8, 500: 0, 900: 0}),
        ({"demo_share_end": 1.0, "demo_share_steps": 200}, {100: 16, 200: 24, 300: 32}),
    ],
)
def test_the_share_of_demonstrations_follows_the_steps_done(
    changes: dict[str, Any], shares: dict[int, int], small: Config, steady: nn.Module
) -> None:
    """Of batches of 32; the share begins to change at the end of the warm-up, after 100 steps."""
    cfg = replace(small, demo_share=0.5, n_step=1, **changes)
    run = _build("policy-decorator", cfg, steady, demonstrated=_demonstrated())
    run.replay.add(run.collector.decide(run.explorer)[0])
    for step, rows in shares.items():
        run.collector.step = step
        batch = run.data.sample(32)
        assert len(batch.reward) == 32
        assert int((batch.obs[:, 0] == 9).sum()) == rows


def test_defaults_are_the_papers() -> None:
    cfg = Config()
    assert (cfg.actor_sees, cfg.critic_sees, cfg.n_step, cfg.reward_shift) == ("obs", "sum", 1, -1.0)
    assert not cfg.standardize_obs
    assert not cfg.base_only_warmup
    assert (cfg.demo_share, cfg.demo_share_end, cfg.learner, cfg.select_by_value) == (0.0, None, "sac", "never")


def test_bound_and_horizon_may_be_left_to_measurements(small: Config, steady: nn.Module) -> None:
    obs, action = torch.randn(50, 4), 0.5 * torch.randn(50, 1, 2)
    demonstrated = Demonstrated(obs, action, torch.zeros_like(action), torch.ones(50) > 0, torch.full((10,), 5))
    run = _build("policy-decorator", replace(small, bound="auto", horizon="auto"), steady, demonstrated=demonstrated)
    assert cast(Residual, run.collector.composition).bound == bound_of(demonstrated)
    assert cast(MeasuredExploration, run.collector.gate).start == 100
    _train(run)
    assert run.learner.updates == 50


def test_an_automatic_bound_needs_demonstrations(small: Config, steady: nn.Module) -> None:
    with pytest.raises(UserError, match="demonstrations"):
        _build("policy-decorator", replace(small, bound="auto"), steady)
