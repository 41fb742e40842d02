"""RLPD and Cal-QL on the base itself, as the paper has them, and on a transformer that was never trained."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from tuned import assert_resumed_is_as_uninterrupted, faster_by, poor_bet, reaching, untrained_bet

from policy_decorator import api
from policy_decorator.base_policies.bet import BehaviorTransformer
from policy_decorator.base_policies.checkpoint import load_policy
from policy_decorator.config import RefineConfig
from policy_decorator.envs.toy import TASKS
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError
from policy_decorator.handover import as_base
from policy_decorator.methods import METHODS, Problem, Run, cal_ql, settings_of
from policy_decorator.rl.cql import Conservative, CQLConfig
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.lora import LoRAConfig
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.offsets import OffsetActor
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.windows import NewestCritics
from policy_decorator.train import TrainConfig

pytest.importorskip("peft", reason="PEFT is not installed")

NAMES = ("rlpd", "sacfd", "cal-ql", "cql")
NETS = NetConfig(width=32, depth=2, log_std_min=-5.0)
SAC = SACConfig(gamma=0.9, lr=3e-3, batch_size=64, temperature=0.005, entropy_in_backup=False)


def _shown() -> Demonstrated:
    """Two episodes whose rows are counted in the first entry."""
    obs = torch.cat([torch.arange(9.0)[:, None], torch.rand(9, 3)], dim=1)
    success = torch.zeros(9, dtype=torch.bool)
    success[[4, 8]] = True
    return Demonstrated(obs, torch.rand(9, 1, 2) - 0.5, torch.rand(9, 1, 2), success, torch.tensor([5, 4]))


def _cfg(method: str, actor: Any, **changes: Any) -> Any:
    cfg = replace(METHODS[method].config(), actor=actor, nets=NETS, sac=SAC, lora=LoRAConfig(4, 8), reward_shift=0.0)
    offline = {"offline_updates": 4, "cql": CQLConfig(cql_samples=2, backup_samples=2)}
    return replace(cfg, **(offline if method in ("cal-ql", "cql") else {}) | changes)


def _run(method: str, actor: Any, base: Any, **changes: Any) -> Run:
    env = make_vector(TASKS["toy/reach-gym"].with_episodes(10, True), 3, context=getattr(base, "context", 1))
    given: dict[str, Any] = {"obs_size": 4, "chunk": (1, 2), "capacity": 1000, "warmup_steps": 0}
    return METHODS[method].build(_cfg(method, actor, **changes), Problem(env, base, **given, demonstrated=_shown()))


@pytest.mark.parametrize("actor", ["mlp", "gpt"])
@pytest.mark.parametrize("method", ["rlpd", "cal-ql"])
def test_updates_of_a_transformer_are_compiled_and_not_replayed(
    method: str, actor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, env = untrained_bet(), make_vector(TASKS["toy/reach-gym"], 2, context=2)
    problem = Problem(env, base, 4, (1, 2), 100, 0, demonstrated=_shown())
    build = partial(METHODS[method].build, _cfg(method, actor))
    assert faster_by(build, problem, monkeypatch) == ({"compiled", "cuda_graphs"} if actor == "mlp" else {"compiled"})


@pytest.mark.parametrize("method", NAMES)
def test_it_begins_as_the_base_and_only_corrections_learn(method: str) -> None:
    base = untrained_bet(action_scale=0.7)
    before = {name: x.clone() for name, x in base.state_dict().items()}
    run, window, answers = _run(method, "base", base), torch.rand(9, 2, 4), []
    for policy in (base, run.policy):
        torch.manual_seed(5)
        answers.append(cast(Any, policy).act(window))
    assert torch.equal(*answers)
    assert run.knows
    assert run.collector.base_queries == 0
    actor = cast(OffsetActor, run.learner.actor)
    frozen = {name: p.clone() for name, p in actor.named_parameters() if not p.requires_grad}
    assert all("lora_" in name or "spread" in name for name, p in actor.named_parameters() if p.requires_grad)
    if run.offline:
        run.offline.learn_all(10, 10, lambda _: None, lambda: None)
    for _ in range(10):
        run.replay.add(run.collector.decide(run.explorer)[0])
    run.learn(4)
    torch.manual_seed(5)
    assert not torch.equal(cast(Any, run.policy).act(window), answers[0])
    assert all(torch.equal(p, dict(actor.named_parameters())[name]) for name, p in frozen.items())
    assert all(torch.equal(x, before[name]) for name, x in base.state_dict().items())


def test_demonstrations_are_windows_as_an_environment_would_show_them() -> None:
    run = _run("rlpd", "base", untrained_bet())
    run.replay.add(run.collector.decide(run.explorer)[0])
    batch = run.data.sample(64)
    assert batch.obs.shape == (64, 2 * 4)
    rows = batch.obs[32:].unflatten(1, (2, 4))[:, :, 0]  # the second half is demonstrated
    following = batch.next_obs[32:].unflatten(1, (2, 4))[:, :, 0]
    begins = (rows[:, 1] == 0) | (rows[:, 1] == 5)
    assert torch.equal(rows[:, 0], torch.where(begins, rows[:, 1], rows[:, 1] - 1))
    goes_on = batch.terminated[32:] == 0
    assert goes_on.any()
    assert torch.equal(following[goes_on, 1], rows[goes_on, 1] + 1)


def test_a_transformer_from_scratch_is_as_large_and_all_of_it_learns() -> None:
    base = untrained_bet(clusters=4, action_scale=0.5)
    run = _run("cal-ql", "gpt", base)
    assert not run.knows
    actor = cast(OffsetActor, run.learner.actor)
    policy = cast(BehaviorTransformer, actor.policy)
    body = sum(p.numel() for name, p in base.named_parameters() if not name.startswith("head"))
    assert sum(p.numel() for name, p in policy.named_parameters() if not name.startswith("head")) == body
    assert all(p.requires_grad for p in actor.parameters())
    assert not torch.equal(policy.embed.weight, base.embed.weight)
    window = torch.rand(50, 8)
    centre, offset = policy.choice(policy.features(window.unflatten(1, (2, 4))))
    assert not centre.any()
    policy.cfg = replace(policy.cfg, dropout_at_inference=False)
    torch.testing.assert_close(actor.mode(window)[:, 0], offset.tanh())
    sample = torch.cat([actor(window)[0] for _ in range(20)])
    assert 0.3 < sample.std() < 0.6  # tanh of 0.5


@pytest.mark.parametrize("method", NAMES)
def test_one_from_scratch_is_never_handed_over_as_the_base(method: str) -> None:
    base = untrained_bet()
    for actor, is_base in (("base", True), ("gpt", False), ("mlp", False)):
        state = as_base(cast(Any, _run(method, actor, base).policy))
        assert (state is not None) is is_base


def test_rungs_of_the_ladder_lead_to_the_papers_actor() -> None:
    assert [cal_ql.ladder(rung).actor for rung in "ABCDE"] == ["mlp", "mlp", "mlp", "gpt", "base"]
    assert {cal_ql.ladder(rung).online for rung in "CDE"} == {"sac"}
    run = _run("cal-ql", "base", untrained_bet())
    assert run.offline is not None
    before = cast(Conservative, run.offline.learner)
    assert before.calibrated
    assert before.actor is run.learner.actor
    assert isinstance(run.learner.critic, NewestCritics)
    assert len(before.actor_opt.param_groups[0]["params"]) == len(cast(OffsetActor, before.actor).learned)


def test_what_cannot_be_the_actor_is_refused(steady: nn.Module) -> None:
    for actor in ("base", "gpt"):
        with pytest.raises(UserError, match=f"rlpd with --actor {actor} tunes a Behavior Transformer"):
            _run("rlpd", actor, steady)
    with pytest.raises(UserError, match="--bounded-offset"):
        _run("cal-ql", "base", untrained_bet(bounded_offset=False))
    for actor in ("base", "gpt"):
        with pytest.raises(UserError, match="initial_std must be between"):
            _run("rlpd", actor, untrained_bet(), nets=NetConfig(width=8, depth=1, log_std_min=-0.5))


def test_presets_leave_the_actor_alone(small: Any) -> None:
    assert cast(Any, settings_of("rlpd", small)).actor == "mlp"


def _config(method: str, total: int, **changes: Any) -> RefineConfig:
    train = TrainConfig(
        total_steps=total, warmup_steps=400, steps_per_round=16, updates_per_step=0.25, log_every=500,
        eval_every=total // 2, save_every=total,
    )  # fmt: skip
    learn = _cfg(method, "base", n_step=3, nets=replace(NETS, initial_std=0.25, critic_layer_norm=True))
    given = {"envs": 8, "eval_episodes": 50, "test_episodes": 100, "device": "cpu", "workers": 0, "learn": learn}
    return RefineConfig(**{"task": "toy/reach-gym", "method": method, "train": train, **given, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rlpd", "cal-ql"])
def test_a_poor_behavior_transformer_becomes_a_good_one(tmp_path: Path, method: str) -> None:
    config, base = _config(method, 4_000), poor_bet()
    offline = {"offline_updates": 100} if method == "cal-ql" else {}
    config = replace(config, learn=replace(config.learn, **offline))
    refined = api.run(config, base, demos=replace(reaching(20, 15), task=config.task), out=tmp_path / "run")
    assert refined.summary["base_success"] < 0.5
    assert refined.summary["refined_success"] > 0.8
    tuned: Any = load_policy(tmp_path / "run" / "refined" / "policy")
    assert type(tuned) is BehaviorTransformer
    assert tuned.cfg == base.cfg


@pytest.mark.usefixtures("unreported")
def test_resumed_is_as_uninterrupted(tmp_path: Path) -> None:
    config = _config("cal-ql", 500, envs=4, eval_episodes=8, test_episodes=8)
    config = replace(config, train=replace(config.train, warmup_steps=100, log_every=100, save_every=160))
    demos = replace(reaching(5, 15), task=config.task)
    assert_resumed_is_as_uninterrupted(config, poor_bet(), tmp_path, at=300, demos=demos)
