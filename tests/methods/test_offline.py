"""Methods that learn from demonstrations from scratch: what they are given, count, keep and refuse."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tuned import assert_resumed_is_as_uninterrupted

from policy_decorator import api
from policy_decorator.config import RefineConfig
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.record import record_policy
from policy_decorator.envs import get_task
from policy_decorator.envs.toy import Reach
from policy_decorator.errors import UserError
from policy_decorator.experiments.presets import settings
from policy_decorator.methods import METHODS, Problem, Run, cal_ql, rlpd, settings_of
from policy_decorator.methods.alone import Alone, Nobody
from policy_decorator.methods.offline import successes
from policy_decorator.refine import Refinement, refine
from policy_decorator.refined import Refined
from policy_decorator.rl.cql import Conservative, Hindsight
from policy_decorator.rl.dapg import DAPGConfig
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.nets import Critics, NetConfig
from policy_decorator.rl.sac import SAC
from policy_decorator.runlog import RunFolder
from policy_decorator.train import TrainConfig, train

NAMES = ("rlpd", "sacfd", "cal-ql", "cql", "iql", "awac", "dapg")
OFFLINE = ("cal-ql", "cql", "iql", "awac", "dapg")
RHYTHM = TrainConfig(total_steps=300, warmup_steps=100, steps_per_round=16, updates_per_step=0.25)


def _offline(run: Run, *how: Any) -> None:
    if run.offline:
        run.offline.learn_all(*how)


def shown(lengths: tuple[int, ...] = (5, 4, 6), solved: tuple[bool, ...] = (True, False, True)) -> Demonstrated:
    """Rows are known by a first observation that no environment gives."""
    n = sum(lengths)
    success = torch.zeros(n, dtype=torch.bool)
    success[torch.tensor(lengths).cumsum(0) - 1] = torch.tensor(solved)
    obs = torch.cat([torch.full((n, 1), 9.0), torch.rand(n, 3)], dim=1)
    return Demonstrated(obs, torch.rand(n, 1, 2) * 2 - 1, torch.rand(n, 1, 2), success, torch.tensor(lengths))


def small_settings(method: str, small: Any, **changes: Any) -> Any:
    cfg = settings_of(method, replace(small, n_step=1))
    return replace(cfg, **({"offline_updates": 6} if method in OFFLINE else {}), **changes)


def build(method: str, cfg: Any, base: Any, **options: Any) -> Run:
    torch.manual_seed(7)
    given = {"obs_size": 4, "chunk": (1, 2), "capacity": 1000, "warmup_steps": 100, "demonstrated": shown()} | options
    return METHODS[method].build(cfg, Problem(Reach(4), base, **given))


def _nothing(*_: Any) -> None: ...


# ---- what defines them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NAMES)
def test_a_preset_leaves_each_what_makes_it_what_it_is(method: str, small: Any) -> None:
    nets, sac = (
        replace(small.nets, critic_layer_norm=True),
        replace(small.sac, residual_penalty=0.5, target_entropy=0.0),
    )
    plain = replace(small, demo_share=0.25, n_step=5, noise_hold=3, nets=nets, sac=sac)
    cfg, own = cast(Any, settings_of(method, plain)), cast(Any, METHODS[method].config())
    assert cfg.demo_share == own.demo_share == 0.5
    assert (cfg.mix, cfg.offline_updates) == (own.mix, own.offline_updates)
    assert cfg.nets.critic_layer_norm is (method == "rlpd")
    assert cfg.sac == replace(sac, residual_penalty=0.0, target_entropy=-1.0)
    assert cfg.n_step == (1 if method == "dapg" else 5)
    assert cfg.uses_demonstrations


def test_rlpd_has_layer_norm_half_demonstrations_and_as_options_the_originals_ensemble(
    small: Any, steady: nn.Module
) -> None:
    run = build("rlpd", small_settings("rlpd", small), steady)
    critic = cast(Critics, run.learner.critic)
    assert critic.net.layer_norm
    assert critic.net.n == 2
    original = rlpd.original()
    assert (original.nets.critics, original.sac.critic_subset, original.sac.actor_value) == (10, 2, "mean")
    assert original.sac.actor_every == rlpd.UPDATES_PER_STEP == 20
    small_original = replace(original, nets=replace(original.nets, width=8), sac=replace(original.sac, batch_size=8))
    run = build("rlpd", small_original, steady)
    assert cast(Critics, run.learner.critic).net.n == 10
    train(replace(RHYTHM, total_steps=120), run, _nothing, _nothing, _nothing)
    assert run.learner.updates == 5


@pytest.mark.parametrize("method", NAMES)
def test_a_run_asks_the_base_nothing_about_demonstrations(method: str, make_config: Any, steady: nn.Module) -> None:
    cfg = make_config()
    learn = small_settings(method, cfg.learn)
    demos = record_policy(get_task(cfg.task), steady, 3, seed=0, source="test", only_successes=False)
    refinement = Refinement(replace(cfg, method=method, learn=learn), steady, None, demos)
    assert refinement.demo_base_queries == 0
    assert not refinement.cfg.learn.asks_about_demonstrations
    refinement.close()


@pytest.mark.parametrize("method", NAMES)
def test_the_base_is_not_asked_and_the_policy_acts_alone(method: str, small: Any) -> None:
    class Deaf:
        context = 1

        def act(self, window: Tensor) -> Tensor:
            raise AssertionError("asked")

    run = build(method, small_settings(method, small), Deaf())
    assert isinstance(run.policy, Alone)
    assert isinstance(run.collector.base, Nobody)
    _offline(run, 50, 50, _nothing, _nothing)
    train(replace(RHYTHM, total_steps=160), run, _nothing, _nothing, _nothing)
    assert run.collector.base_queries == 0
    assert run.policy.act(torch.rand(3, 1, 4)).abs().max() <= 1


@pytest.mark.parametrize("mix", ["share", "pool"])
def test_demonstrations_are_a_share_or_lie_in_the_pool(mix: Any, small: Any, steady: nn.Module) -> None:
    """14 transitions: of 15 rows, the last of the episode that failed has no known outcome."""
    run = build("sacfd", small_settings("sacfd", small, mix=mix), steady)
    for decisions, pooled in ((12, 17), (100, 4), (436, 1)):
        while run.replay.size < decisions:
            run.replay.add(run.collector.decide(run.explorer)[0])
        batch = run.data.sample(32)
        assert int((batch.obs[:, 0] == 9).sum()) == (16 if mix == "share" else pooled)
        assert (batch.base == 0).all()


def test_failures_are_left_out_where_only_successes_are_learned_from() -> None:
    d = shown()
    kept = successes(d)
    assert kept.lengths.tolist() == [5, 6]
    assert torch.equal(kept.obs, torch.cat([d.obs[:5], d.obs[9:]]))
    assert torch.equal(kept.action, torch.cat([d.action[:5], d.action[9:]]))


# ---- before the first environment step ------------------------------------------------------------------------


@pytest.mark.parametrize("method", OFFLINE)
def test_offline_updates_learn_and_are_counted_apart(method: str, small: Any, steady: nn.Module) -> None:
    run = build(method, small_settings(method, small), steady)
    assert run.offline is not None
    parts = [p.clone() for p in run.learner.actor.parameters()]
    told: list[Any] = []
    saved: list[int] = []

    def save() -> None:
        saved.append(cast(Any, run.offline).updates)

    _offline(run, 4, 3, told.append, save)
    assert (run.offline.updates, run.learner.updates, run.collector.step, run.replay.size) == (6, 0, 0, 0)
    assert any(not torch.equal(p, q) for p, q in zip(parts, run.learner.actor.parameters(), strict=True))
    assert len(told) == 2
    assert all(name.startswith("offline/") for name in told[0])
    assert saved == [3]  # and behind the last when it has been evaluated
    _offline(run, 50, 50, told.append, save)  # there is nothing left to do
    assert len(told) == 2
    train(RHYTHM, run, _nothing, _nothing, _nothing)
    assert run.offline.updates == 6
    assert run.learner.updates == (1 if method == "dapg" else 50)


def test_who_has_learned_acts_at_once_and_who_has_not_explores_first(small: Any, steady: nn.Module) -> None:
    for offline in (6, 0):
        run = build("iql", replace(small_settings("iql", small), offline_updates=offline), steady)
        train(replace(RHYTHM, total_steps=96), run, _nothing, _nothing, _nothing)
        assert (run.offline is not None) is (offline > 0)
        assert (run.explorer.asked > 0) is (offline > 0)


@pytest.mark.parametrize("online", ["sac", "conservative"])
@pytest.mark.parametrize("method", ["cal-ql", "cql"])
def test_cal_ql_goes_on_as_asked(method: str, online: Any, small: Any, steady: nn.Module) -> None:
    run = build(method, small_settings(method, small, online=online), steady)
    calibrated = method == "cal-ql"
    before: Any = cast(Any, run.offline).learner
    assert isinstance(before, Conservative)
    assert before.calibrated is calibrated
    assert (type(run.learner) is Conservative) is (online == "conservative")
    assert isinstance(run.learner, SAC)
    assert run.learner.critic_opt is before.critic_opt
    assert isinstance(run.intake, Hindsight) is (calibrated and online == "conservative")
    _offline(run, 50, 50, _nothing, _nothing)
    train(RHYTHM, run, _nothing, _nothing, _nothing)
    assert run.learner.updates == 50
    assert ("q/reference" in run.monitor.learning) is (calibrated and online == "conservative")


def test_the_ladder_of_the_paper() -> None:
    assert cal_ql.ladder("A").online == cal_ql.ladder("B").online == "conservative"
    assert [cal_ql.ladder(rung).offline_data for rung in "ABC"] == ["all", "successes", "successes"]
    assert cal_ql.ladder("C", offline_updates=3) == cal_ql.Config(offline_data="successes", offline_updates=3)
    with pytest.raises(UserError, match="rung"):
        cal_ql.ladder("F")


# ---- a run from end to end ------------------------------------------------------------------------------------


def demonstrations(episodes: int = 6) -> Demonstrations:
    """Random rows as a file of the task has them."""
    rows = np.random.default_rng(0).uniform(-1, 1, (8 * episodes, 6)).astype(np.float32)
    success = np.arange(len(rows)) % 8 == 7
    lengths, seeds = np.full(episodes, 8), np.arange(episodes)
    return Demonstrations("toy/reach", rows[:, :4], rows[:, 4:], success, lengths, seeds, "nobody", {})


class Stopped(Exception):
    pass


def _run(config: RefineConfig, base: Any, out: Path, resume: bool = False) -> Refined:
    if not resume:
        with RunFolder.create(out, config, tensorboard=False) as folder:
            return refine(config, base, folder, demos=demonstrations())[0]
    config, folder, state = api._resume(config, out)  # pyright: ignore[reportPrivateUsage]
    with folder:
        return refine(config, base, folder, demos=demonstrations(), resume=state)[0]


def _lines(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "wall_seconds"} for line in RunFolder.open(out).metrics()]


@pytest.mark.parametrize(("method", "stop"), [("cal-ql", 8), ("dapg", 8), ("iql", 20)])
def test_a_run_that_is_stopped_while_it_learns_offline_goes_on_bit_for_bit(
    method: str, stop: int, tmp_path: Path, make_config: Callable[..., RefineConfig], small: Any, steady: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    learn = replace(small_settings(method, small), offline_updates=20)
    learn = replace(learn, sac=replace(learn.sac, actor_every=2))
    if method == "dapg":
        learn = replace(learn, dapg=replace(learn.dapg, rollout=16))
    config = make_config(method=method, learn=learn, log_every=5, save_every=7, total_steps=200)
    whole = _run(config, steady, tmp_path / "whole")
    assert whole.summary["offline_updates"] == 20
    assert [line["offline_updates"] for line in _lines(tmp_path / "whole")][:6] == [0, 5, 10, 15, 20, 20]
    assert RunFolder.open(tmp_path / "whole").evaluations("offline")[0]["offline_updates"] == 20

    kind = type(cast(Any, build(method, learn, steady).offline).learner)
    update = kind.update

    def stopping(self: Any, b: Any) -> Any:
        if self.updates == stop - 1:
            raise Stopped
        return update(self, b)

    monkeypatch.setattr(kind, "update", stopping)
    with pytest.raises(Stopped):
        _run(config, steady, tmp_path / "parts")
    monkeypatch.undo()
    again = _run(config, steady, tmp_path / "parts", resume=True)
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")
    for name, value in cast(nn.Module, whole.policy.actor).state_dict().items():
        assert torch.equal(value, cast(nn.Module, again.policy.actor).state_dict()[name])


def test_one_that_is_stopped_while_what_it_learned_offline_is_evaluated_evaluates_that(
    tmp_path: Path, make_config: Callable[..., RefineConfig], small: Any, steady: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = make_config(method="iql", learn=small_settings("iql", small), save_every=3, total_steps=120)
    _run(config, steady, tmp_path / "whole")
    episodes = Refinement.episodes

    def stopping(self: Refinement, policy: Any, n: int, seed: int, name: str, *rest: Any) -> Any:
        if name == "offline":
            raise Stopped
        return episodes(self, policy, n, seed, name, *rest)

    monkeypatch.setattr(Refinement, "episodes", stopping)
    with pytest.raises(Stopped):
        _run(config, steady, tmp_path / "parts")
    monkeypatch.undo()
    _run(config, steady, tmp_path / "parts", resume=True)
    assert _lines(tmp_path / "parts") == _lines(tmp_path / "whole")
    assert any("eval/offline" in line for line in _lines(tmp_path / "parts"))


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("rlpd", {}),
        ("sacfd", {}),
        ("cql", {}),
        ("cal-ql", {"online": "conservative"}),
        ("iql", {}),
        ("awac", {}),
        ("dapg", {"dapg": DAPGConfig(rollout=16, value_epochs=1)}),
    ],
)
def test_a_run_that_is_stopped_while_it_acts_goes_on_bit_for_bit(
    method: str, changes: dict[str, Any], tmp_path: Path, make_config: Any, small: Any, steady: nn.Module
) -> None:
    """In the middle of episodes and rollouts, with what is held back until they end."""
    learn = small_settings(method, small, **changes)
    rhythm = {"total_steps": 176, "warmup_steps": 64, "log_every": 40, "eval_every": 1_000, "save_every": 100}
    config = make_config(method=method, learn=learn, **rhythm, eval_episodes=2, test_episodes=2)
    whole = assert_resumed_is_as_uninterrupted(config, steady, tmp_path, at=144, demos=demonstrations())
    assert whole["state"]["offline_updates"] == (6 if method in OFFLINE else 0)
    assert whole["state"]["updates"] > 1
    if method in ("cal-ql", "dapg"):
        assert whole["state"]["intake"]


def test_what_is_learned_offline_is_evaluated_and_may_be_kept(
    tmp_path: Path, make_config: Callable[..., RefineConfig], small: Any, steady: nn.Module
) -> None:
    config = make_config(method="iql", learn=small_settings("iql", small), total_steps=120, eval_every=1_000)
    refinement = Refinement(
        config, steady, RunFolder.create(tmp_path / "run", config, tensorboard=False), demonstrations()
    )
    refinement.learn_offline()
    rates = [line["eval/offline"] for line in _lines(tmp_path / "run") if "eval/offline" in line]
    assert len(rates) == 1
    assert refinement.best.success == rates[0]
    assert refinement.best.step == 0
    kept, actor = refinement.best.actor, refinement.run.learner.actor.state_dict()
    assert all(torch.equal(x, kept[name]) for name, x in actor.items())
    refinement.learn_offline()
    assert [line for line in _lines(tmp_path / "run") if "eval/offline" in line][1:] == []
    refinement.close()


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", NAMES)
def test_each_says_that_it_needs_demonstrations(method: str, small: Any, steady: nn.Module) -> None:
    cfg = small_settings(method, small)
    with pytest.raises(UserError, match=f"{method} learns from demonstrations"):
        build(method, cfg, steady, demonstrated=None)
    with pytest.raises(UserError, match=f"{method} has no eyes"):
        build(method, cfg, steady, shapes={"rgb": (3, 8, 8)})
    none = replace(cfg, offline_data="successes")
    with pytest.raises(UserError, match="no episode that it may learn from"):
        build(method, none, steady, demonstrated=shown((4, 4), (False, False)))


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("rlpd", {"learner": "td3"}, "a learner of its own"),
        ("sacfd", {"demo_share_end": 0.1, "demo_share_steps": 10}, "demo_share_end are of mix = share"),
        ("awac", {"demo_share": 0.1}, "demo_share and demo_share_end are of mix = share"),
        ("dapg", {"demo_share": 0.1}, "count by demo_weight"),
        ("dapg", {"mix": "pool"}, "count by demo_weight"),
        ("iql", {"offline_updates": -1}, "offline_updates must be at least 0"),
        ("dapg", {"n_step": 3}, "leave out n_step and noise_hold"),
    ],
)
def test_contradictions_are_refused(method: str, changes: dict[str, Any], reason: str, small: Any) -> None:
    with pytest.raises(UserError, match=reason):
        replace(small_settings(method, small), **changes)


@pytest.mark.parametrize(
    ("method", "part", "changes"),
    [
        ("cal-ql", "sac", {"gamma": 1.0}),
        ("cal-ql", "cql", {"cql_samples": 0}),
        ("cal-ql", "cql", {"cql_temperature": 0.0}),
        ("iql", "iql", {"expectile": 1.0}),
        ("iql", "iql", {"most_weight": 0.5}),
        ("awac", "awac", {"advantage_temperature": 0.0}),
        ("dapg", "dapg", {"rollout": 0}),
        ("dapg", "dapg", {"demo_decay": 1.5}),
    ],
)
def test_numbers_out_of_range_are_refused(method: str, part: str, changes: dict[str, Any], small: Any) -> None:
    cfg = small_settings(method, small)
    with pytest.raises(UserError):
        replace(cfg, **{part: replace(getattr(cfg, part), **changes)})


def test_references_need_single_decisions(small: Any, steady: nn.Module) -> None:
    cfg = replace(small_settings("cal-ql", small), n_step=3)
    build("cal-ql", cfg, steady)
    with pytest.raises(UserError, match="n_step = 1"):
        build("cal-ql", replace(cfg, online="conservative"), steady)


def test_a_scale_of_values_needs_success_to_be_worth_more(small: Any, steady: nn.Module) -> None:
    for shift in (0.1, 0.0):
        cfg = small_settings("cql", small, reward_shift=shift)
        if shift:
            with pytest.raises(UserError, match="failing for ever is worth as much as success"):
                build("cql", cfg, steady)
        else:
            build("cql", cfg, steady)
    given = replace(cfg.cql, cql_weight=1.0, cql_temperature=1.0)
    build("cql", replace(cfg, reward_shift=0.1, cql=given), steady)


def test_dapg_is_on_policy(small: Any, steady: nn.Module, make_config: Callable[..., RefineConfig]) -> None:
    learn = small_settings("dapg", small)
    with pytest.raises(UserError, match="dapg learns only from what its latest policy did"):
        make_config(method="dapg", learn=learn, overlap=True)
    with pytest.raises(UserError, match="threads = auto"):
        make_config(method="dapg", learn=learn, threads="auto")
    assert settings("quick", "toy/reach", method="dapg").train.warmup_steps == 0  # updates are rounds
    with pytest.raises(UserError, match="random actions"):
        build("dapg", replace(learn, offline_updates=0), steady)
    assert math.isinf(build("dapg", learn, steady).learner.__dict__["cloning_opt"].param_groups[0]["max_grad_norm"])


def test_a_policy_that_imitates_keeps_some_spread(small: Any, steady: nn.Module) -> None:
    cfg = small_settings("iql", small, nets=NetConfig(width=8, depth=1))
    actor = cast(Any, build("iql", cfg, steady).learner.actor)
    log_std = actor.gaussian(torch.randn(9, 4))[1]
    torch.testing.assert_close(log_std.exp(), torch.full_like(log_std, 0.5), rtol=0.2, atol=0.0)
    assert actor.cfg.log_std_min == -5.0
