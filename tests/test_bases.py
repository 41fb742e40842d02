"""The base policies of the studies, small: each is made once, as a run takes it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policy_decorator import api
from policy_decorator.base_policies.imitate import ImitateConfig
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs.toy import Reach
from policy_decorator.evaluation import VALIDATION, run_episodes
from policy_decorator.experiments import bases, strangers
from policy_decorator.experiments.bases import BASES, PEG, BaseConfig, make_base
from policy_decorator.memory import ask
from policy_decorator.progress import Silent

TOY = replace(PEG, task="toy/reach", episodes=100, noise=0.3, training=ImitateConfig(steps=600, batch_size=64, lr=1e-3))


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> BaseConfig:
    monkeypatch.setitem(BASES, "toy", TOY)
    monkeypatch.setitem(BASES, "toy-served", replace(TOY, served=True))
    monkeypatch.setitem(BASES, "toy-sb3", replace(TOY, policy="sb3"))
    monkeypatch.setattr(strangers, "STEPS", 600)
    return TOY


def _success(policy: object) -> float:
    return run_episodes(Reach(20), api.load(policy, 2), 40, VALIDATION).rate


def test_a_base_is_made_once_and_known_again(base: BaseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, demos = make_base("toy", 0, tmp_path, tmp_path / "bases")
    assert _success(made) > 0.5
    monkeypatch.setattr(bases, "train_base", lambda *_: pytest.fail("trained again"))
    known, same = make_base("toy", 0, tmp_path, tmp_path / "bases")
    window = torch.rand(5, 1, 4)
    torch.testing.assert_close(known.act(window), made.act(window), rtol=0, atol=0)
    assert (same.actions == demos.actions).all()


def test_bases_share_demonstrations_and_seeds_do_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, made = bases.demonstrations, []

    def counted(cfg: BaseConfig, seed: int, *others: Any) -> Demonstrations:
        made.append((cfg.episodes, seed))
        return record(cfg, seed, *others)

    monkeypatch.setattr(bases, "demonstrations", counted)
    few = replace(TOY, episodes=2)
    for cfg in (few, replace(few, policy="bet"), replace(few, same_for_all=True), replace(few, episodes=3)):
        for seed in (0, 1):
            demos = bases.kept_demonstrations(cfg, seed, tmp_path, tmp_path / "bases", Silent())
            assert demos.episodes == cfg.episodes
    assert made == [(2, 0), (2, 1), (3, 0), (3, 1)]


def test_one_that_takes_hours_is_the_same_for_all_seeds(
    base: BaseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASES, "toy-slow", replace(TOY, same_for_all=True))
    monkeypatch.setitem(BASES, "toy-fast", TOY)
    window = torch.rand(5, 1, 4)
    for name, alike in (("toy-slow", True), ("toy-fast", False)):
        first, second = (make_base(name, seed, tmp_path, tmp_path / "bases")[0].act(window) for seed in (0, 1))
        assert first.equal(second) == alike


def test_a_policy_that_sees_imitates_the_same_demonstrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(TOY, episodes=3)
    state = bases.kept_demonstrations(few, 1, tmp_path, tmp_path / "bases", Silent())
    monkeypatch.setattr(bases, "demonstrations", lambda *_: pytest.fail("recorded again"))
    seen = bases.kept_demonstrations(replace(few, task="toy/reach:rgb"), 1, tmp_path, tmp_path / "bases", Silent())
    assert (seen.task, seen.episodes) == ("toy/reach:rgb", 3)
    assert (seen.seeds == state.seeds).all()
    assert (seen.actions == state.actions).all()
    assert seen.pictures["rgb"].std() > 0


def test_its_own_episodes_are_put_beside_the_demonstrations(
    base: BaseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASES, "toy-mixed", replace(TOY, rollouts=6))
    _, demos = make_base("toy-mixed", 0, tmp_path, tmp_path / "bases")
    assert demos.episodes == TOY.episodes + 6
    assert not set(demos.seeds[-6:]) & set(demos.seeds[:-6])
    _, again = make_base("toy-mixed", 0, tmp_path, tmp_path / "bases")
    assert (again.actions == demos.actions).all()


def test_a_process_of_its_own_answers_as_the_policy_does(base: BaseConfig, tmp_path: Path) -> None:
    address, _ = make_base("toy-served", 0, tmp_path, tmp_path / "bases")
    assert address.startswith("ws://")
    policy, _ = make_base("toy", 0, tmp_path, tmp_path / "bases")
    window = torch.rand(5, 1, 4)
    torch.testing.assert_close(ask(api.load(address, 2), window), policy.act(window))


def test_a_model_of_stable_baselines3_imitates(base: BaseConfig, tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    model, _ = make_base("toy-sb3", 0, tmp_path, tmp_path / "bases")
    assert type(model).__name__ == "PPO"
    assert _success(model) > 0.5
