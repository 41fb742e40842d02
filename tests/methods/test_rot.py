"""ROT: the base that goes on learning, what is rewarded, and what it reaches."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from tuned import assert_resumed_is_as_uninterrupted, faster_by, poor_bet, reaching

from policy_decorator.base_policies import build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.envs import toy
from policy_decorator.envs.toy import TASKS
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.errors import UserError
from policy_decorator.methods import METHODS, Problem, Run, rot, settings_of
from policy_decorator.methods.finetuned import FineTuned
from policy_decorator.methods.rot import Config
from policy_decorator.refine import Refinement, refine
from policy_decorator.refined import Refined
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.lora import LoRAConfig
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.rot import ROT, TrunkCritics
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.transport import TransportReward
from policy_decorator.runlog import RunFolder
from policy_decorator.train import TrainConfig, train

pytestmark = pytest.mark.usefixtures("pot")


def _base(kind: str) -> Any:
    if kind == "mlp":
        return build("mlp", 4, 2, MLPConfig(width=16, depth=1, context=3))
    bounded: dict[str, Any] = {"bounded_offset": True, "action_scale": 0.5} if kind == "bounded bet" else {}
    cfg = BeTConfig(context=3, clusters=4, layers=1, heads=2, width=8, dropout=0.0, **bounded)
    policy: Any = build("bet", 4, 2, cfg)
    policy.centres.copy_(torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.5], [-0.5, -0.5]]))
    return policy


def _shown(n: int = 24) -> Demonstrated:
    success, lengths = torch.arange(n) % 12 == 11, torch.full((n // 12,), 12)
    return Demonstrated(torch.rand(n, 4), torch.rand(n, 1, 2), torch.rand(n, 1, 2), success, lengths)


def _build(small: Any, base: Any, shown: Demonstrated | None = None, warmup_steps: int = 0, **changes: Any) -> Run:
    torch.manual_seed(7)
    env = SimulatorVector(TASKS["toy/reach-gym"].with_episodes(8, True), 3, context=base.context)
    problem = Problem(env, base, 4, (1, 2), 1000, warmup_steps, demonstrated=shown or _shown())
    return METHODS["rot"].build(replace(settings_of("rot", small), **changes), problem)


def _collect(run: Run, decisions: int) -> None:
    for _ in range(decisions):
        t, step = run.collector.decide(run.explorer)
        if (kept := run.intake.push(t, step.done)) is not None:
            run.replay.add(kept)


@pytest.mark.parametrize("kind", ["mlp", "bet", "bounded bet"])
def test_it_begins_as_the_base_and_leaves_that_alone(kind: str, small: Any) -> None:
    base = _base(kind).requires_grad_(False)
    before = {name: x.clone() for name, x in base.state_dict().items()}
    run, window = _build(small, base), torch.rand(6, 3, 4)
    assert isinstance(run.policy, FineTuned)
    torch.testing.assert_close(run.policy.act(window), base.act(window))
    actor = cast(ROT, run.learner).actor
    torch.testing.assert_close(actor.answers.means(window)[:, -1:].clamp(-1, 1), base.act(window))
    _collect(run, 20)
    run.learn(3)
    assert not torch.equal(run.policy.act(window), base.act(window))
    for name, x in base.state_dict().items():
        assert torch.equal(x, before[name])


@pytest.mark.parametrize("kind", ["bet", "bounded bet"])
def test_by_lora_it_begins_as_the_base_and_only_corrections_learn(kind: str, small: Any) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed")
    base, window = _base(kind).requires_grad_(False), torch.rand(6, 3, 4)
    before = {name: x.clone() for name, x in base.state_dict().items()}
    run = _build(small, base, learns="lora", lora=LoRAConfig(2, 4))
    actor = cast(ROT, run.learner).actor
    assert torch.equal(run.policy.act(window), base.act(window))
    learned = {name: p.clone() for name, p in actor.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name == "log_std" for name in learned)
    assert any("head" in name for name in learned)
    assert any("attention" in name for name in learned)
    frozen = {name: p.clone() for name, p in actor.named_parameters() if not p.requires_grad}
    _collect(run, 20)
    run.learn(3)
    now = dict(actor.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in frozen.items())
    assert any(not torch.equal(now[name], p) for name, p in learned.items() if "lora_B" in name)
    assert not torch.equal(run.policy.act(window), base.act(window))
    torch.testing.assert_close(actor.merged().act(window), run.policy.act(window), rtol=0, atol=0)
    assert all(torch.equal(x, before[name]) for name, x in base.state_dict().items())


def test_lora_is_for_a_behavior_transformer(small: Any) -> None:
    with pytest.raises(UserError, match="of an MLP let all learn"):
        _build(small, _base("mlp"), learns="lora")


@pytest.mark.parametrize("learns", ["all", "lora"])
@pytest.mark.usefixtures("unreported")
def test_resumed_is_as_uninterrupted(learns: Any, make_config: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed")
    rhythm = {"total_steps": 176, "warmup_steps": 64, "log_every": 40, "eval_every": 1_000, "save_every": 100}
    config = make_config(**rhythm, eval_episodes=2, test_episodes=2)
    learn = replace(settings_of("rot", config.learn), compared=2, imitation_batch=16, learns=learns)
    config = replace(config, method="rot", learn=learn)
    whole = assert_resumed_is_as_uninterrupted(config, poor_bet(), tmp_path, at=144, demos=reaching(4, 15))
    assert whole["state"]["updates"] > 1


@pytest.mark.parametrize("kind", ["mlp", "bet"])
def test_updates_of_a_transformer_are_compiled_and_not_replayed(
    kind: str, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, base, env = settings_of("rot", small), _base(kind), SimulatorVector(TASKS["toy/reach-gym"], 2, context=3)
    problem = Problem(env, base, 4, (1, 2), 100, 0, demonstrated=_shown())
    ways = {"compiled", "cuda_graphs"} if kind == "mlp" else {"compiled"}
    assert faster_by(partial(METHODS["rot"].build, settings), problem, monkeypatch) == ways


def test_a_behavior_transformer_answers_in_the_clusters_it_is_told() -> None:
    base, window = _base("bet"), torch.rand(6, 3, 4)
    actions = torch.rand(6, 3, 2) * 2 - 1
    logits, offsets = base.logits_and_offsets(window)
    nearest = torch.cdist(actions, base.centres).argmin(-1)
    for b in range(6):
        for t in range(3):
            k, own = nearest[b, t], logits[b, t].argmax()
            torch.testing.assert_close(base.means(window, actions)[b, t], base.centres[k] + offsets[b, t, k])
            torch.testing.assert_close(base.means(window)[b, t], base.centres[own] + offsets[b, t, own])


def test_the_base_acts_in_the_warm_up_and_is_then_only_asked(small: Any) -> None:
    base = _base("mlp")
    run = _build(small, base, warmup_steps=6)
    kept = []
    for _ in range(4):
        window = run.collector.window
        t, _ = run.collector.decide(run.explorer)
        torch.testing.assert_close(t.base, base.act(window))  # what the Q-filter compares with
        assert t.obs.shape == (3, 12)
        kept.append(torch.equal(t.raw, t.base))
    assert kept == [True, True, False, False]


def test_no_action_is_random_where_the_warm_up_ends_between_two_updates(small: Any) -> None:
    run = _build(small, _base("mlp"), warmup_steps=20)
    rhythm = TrainConfig(total_steps=45, warmup_steps=20, steps_per_round=15, updates_per_step=0)
    train(rhythm, run, lambda _: None, lambda: None, lambda: None)
    data = run.replay.data
    assert data is not None
    off = (data.raw - data.base)[: run.replay.size].abs().flatten(1).amax(1)
    assert (off > 0).any()
    assert off.max() < 0.5  # its deviation is 0.1


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_demonstrated_decisions_come_with_what_the_base_would_have_done(share: float, make_config: Any) -> None:
    config, base = make_config(), _steering()
    learn = replace(settings_of("rot", config.learn), demo_share=share, n_step=1)
    session = Refinement(replace(config, method="rot", learn=learn), base, None, reaching(4, 15))
    assert (session.demo_base_queries > 0) is (share > 0)
    if share:
        for _ in range(20):
            t, step = session.run.collector.decide(session.run.explorer)
            if (kept := session.run.intake.push(t, step.done)) is not None:
                session.run.replay.add(kept)
        batch = session.run.data.sample(40)
        torch.testing.assert_close(batch.base[30:], base.act(batch.obs[30:, None]))
    session.close()


def test_success_is_not_rewarded_and_demonstrations_are_its_own_actions(small: Any) -> None:
    shown, rewards, base = _shown(), [], _base("mlp")
    known = torch.cat([shown.obs, shown.action[:, 0]], dim=1)
    for shift in (-1.0, 4.0):
        run = _build(small, base, shown, reward_shift=shift, demo_share=0.5, n_step=1)
        torch.manual_seed(1)
        _collect(run, 30)
        torch.manual_seed(2)
        batch = run.data.sample(40)
        rewards.append(batch.reward)
        assert (batch.reward[20:] == 0).all()
        assert (batch.reward[:20] < 0).all()
        drawn = torch.cat([batch.obs[20:, 8:], batch.raw[20:, 0]], dim=1)
        assert torch.cdist(drawn, known).min(dim=1).values.max() < 1e-3
    torch.testing.assert_close(*rewards, rtol=0, atol=0)


def test_windows_of_demonstrations_repeat_an_episodes_first_frame(small: Any) -> None:
    shown = _shown()
    learner = cast(ROT, _build(small, _base("mlp"), shown).learner)
    obs, actions = learner.shown
    assert obs.shape == (24, 3, 4)
    assert actions.shape == (24, 3, 2)
    torch.testing.assert_close(obs[12], shown.obs[[12, 12, 12]])
    torch.testing.assert_close(obs[14], shown.obs[12:15])
    torch.testing.assert_close(actions[13], shown.action[[12, 12, 13], 0])


def test_distances_are_measured_in_the_target_critics_trunk(small: Any) -> None:
    run, obs = _build(small, _base("mlp")), torch.rand(5, 4)
    reward, learner = cast(TransportReward, run.reward), cast(Any, run.learner)
    torch.testing.assert_close(reward.features(obs), learner.target.look(obs))
    with torch.no_grad():
        learner.target.trunk[0].weight.mul_(-1)
    torch.testing.assert_close(reward.features(obs), learner.target.look(obs))  # as it is by now


def test_what_it_cannot(small: Any, steady: Any) -> None:
    settings, env = settings_of("rot", small), SimulatorVector(TASKS["toy/reach-gym"], 2)
    problem = Problem(env, steady, 4, (1, 2), 100, 0, demonstrated=_shown())
    with pytest.raises(UserError, match="cannot with SteadyController"):
        METHODS["rot"].build(settings, problem)
    with pytest.raises(UserError, match="rot learns from demonstrations"):
        METHODS["rot"].build(settings, replace(problem, demonstrated=None))
    with pytest.raises(UserError, match="give sees = embedding"):
        METHODS["rot"].build(settings, replace(problem, shapes={"rgb": (3, 8, 8)}))
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"learner": "td3"}, "rot learns with sac"),
        ({"nets": NetConfig(initial_std=0.3)}, "begin_std"),
        ({"success_ends_value": True}, "leave out learner and success_ends_value"),
        ({"trunk": 0}, "trunk and compared must be at least 1"),
        ({"begin_std": 0.0}, "begin_std must be above 0"),
    ]
    for changes, reason in contradictions:
        with pytest.raises(UserError, match=reason):
            Config(**changes)


def _steering(bias: tuple[float, float] = (0.14, 0.06)) -> Any:
    """An MLP that steers past the goal: on each side, ReLUs of goal minus position."""
    policy: Any = build("mlp", 4, 2, MLPConfig(width=4, depth=1, standardize_obs=False))
    first, last = policy.net[1], policy.net[3]
    with torch.no_grad():
        toward = torch.tensor([[-1.0, 0, 1, 0], [0, -1, 0, 1]])
        first.weight.copy_(torch.cat([toward, -toward]))
        first.bias.zero_()
        last.weight.copy_(2 * torch.cat([torch.eye(2), -torch.eye(2)], dim=1))
        last.bias.copy_(torch.tensor(bias))
    return policy


class Knowing(TrunkCritics):
    """Measures distances, and values, by where the goal lies from here."""

    def look(self, obs: Tensor) -> Tensor:
        position, goal = obs[:, -4:].chunk(2, dim=-1)
        return torch.cat([goal - position, torch.full_like(position, 0.1)], dim=-1) + 0 * super().look(obs)


def _refined(config: Any, base: Any, folder: Path, learn: Config) -> tuple[Refined, Any]:
    """After 3,000 steps in which episodes do not end at success."""
    nets = NetConfig(width=32, depth=2)
    config = replace(config, method="rot", learn=replace(learn, nets=nets), max_steps=15, ends_at_success=False)
    config = replace(config, keep="last", train=replace(config.train, updates_per_step=1.0))
    return refine(config, base, RunFolder.create(folder, config, tensorboard=False), demos=reaching(20, 15))


LONG: dict[str, Any] = {
    "total_steps": 3_000,
    "eval_every": 3_000,
    "save_every": 3_000,
    "warmup_steps": 300,
    "test_episodes": 40,
}


@pytest.mark.slow
def test_the_base_is_tuned_to_reach_without_being_told_of_success(
    tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved and loaded is the tuned policy itself.

    Seeds 0 to 4: 25 -> 100 % each; with imitation_weight = 0 (seeds 0, 1, 2, 4): 3, 13, 23, 33 %. The default weight
    ends anywhere from 20 to 100 %, by the seed; imitation without the reward reaches 100 % here, too.
    """
    monkeypatch.setattr(rot, "TrunkCritics", Knowing)
    sac = SACConfig(gamma=0.8, lr=3e-4, batch_size=64, temperature=0.002, entropy_in_backup=False)
    learn, base = Config(compared=3, trunk=4, imitation_weight=0.3, sac=sac), _steering()
    refined, comparison = _refined(make_config(**LONG), base, tmp_path / "run", learn)
    assert refined.summary["base_success"] < 0.5
    assert refined.summary["refined_success"] > 0.7
    again, window = Refined.load(tmp_path / "run"), torch.rand(5, 1, 4)
    acted: Tensor = again.policy.act(window)
    torch.testing.assert_close(acted, refined.policy.act(window), rtol=0, atol=0)
    assert not torch.allclose(acted, base.act(window))
    assert np.mean(comparison.refined.episodes.success) == refined.summary["refined_success"]


@pytest.mark.slow
def test_the_reward_alone_leads_to_the_demonstrations(
    tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without imitation, from a base that comes to rest 0.3 beside the goal; starts and goals lie close together.

    A base of 32 units instead of 4, seeds 0 to 2: an episode's sum goes from -10 to above -0.3. With rewards of 0 it
    ends at -14 or below (2,000 steps, seeds 0 to 3).
    """
    monkeypatch.setattr(rot, "TrunkCritics", Knowing)
    layout, sums, score = toy._layout, [], TransportReward.__call__

    def alike(seeds: Tensor) -> tuple[Tensor, Tensor]:
        start, goal = layout(seeds)
        return torch.tensor([-0.5, -0.4]) + 0.1 * start, torch.tensor([0.4, 0.3]) + 0.1 * goal

    def scored(reward: TransportReward, episode: Tensor) -> Tensor:
        rewards = score(reward, episode)
        sums.append(rewards.sum().item())
        return rewards

    monkeypatch.setattr(toy, "_layout", alike)
    monkeypatch.setattr(TransportReward, "__call__", scored)
    sac = SACConfig(gamma=0.5, lr=1e-3, batch_size=64, temperature=0.002, entropy_in_backup=False)
    learn = Config(compared=3, trunk=4, imitation_weight=0.0, begin_std=0.3, sac=sac)
    refined, _ = _refined(make_config(**LONG), _steering(bias=(0.5, 0.3)), tmp_path / "run", learn)
    assert np.mean(sums[:20]) < -8
    assert np.mean(sums[-20:]) > -2
    assert refined.summary["refined_success"] > 0.7
