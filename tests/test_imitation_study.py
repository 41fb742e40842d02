"""The study of imitation: trained once, tested on episodes of their own, kept in its tables."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from interrupted import Interrupted

from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.imitate import ImitateConfig
from policy_decorator.errors import UserError
from policy_decorator.experiments import bases, imitation
from policy_decorator.experiments.bases import PEG, BaseConfig
from policy_decorator.experiments.imitation import IMITATIONS, ImitationConfig, main, train_one
from policy_decorator.progress import Silent

SHORT = ImitateConfig(steps=300, batch_size=64, lr=1e-3, eval_every=100, eval_episodes=10)
TOY = replace(PEG, task="toy/reach", episodes=60, training=SHORT, evaluate=True)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> dict[str, BaseConfig]:
    toys = {"MLP": TOY, "wide": replace(TOY, net={"width": 64})}
    monkeypatch.setattr(imitation, "IMITATIONS", {"toy/reach": toys})
    monkeypatch.setattr(imitation, "TEST_EPISODES", 20)
    monkeypatch.setattr(imitation, "_spawn", lambda cfg, one: train_one(cfg, *one) or 0)
    return toys


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_is_trained_once_and_its_best_checkpoint_tested(
    toys: dict[str, BaseConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = ImitationConfig(("toy/reach",), seeds=(0, 1), runs=tmp_path / "runs", results=tmp_path / "results")
    main(cfg)
    out = tmp_path / "results" / "imitation"
    summary, curves = _rows(out / "summary.csv"), _rows(out / "curves.csv")
    assert [(row["policy"], row["seed"]) for row in summary] == [
        ("MLP", "0"),
        ("MLP", "1"),
        ("wide", "0"),
        ("wide", "1"),
    ]
    for row in summary:
        assert float(row["test_success"]) > 0.3
        assert float(row["test_low"]) < float(row["test_success"]) < float(row["test_high"]) + 1e-9
        assert (row["demonstrations"], row["steps"], row["test_episodes"]) == ("60", "300", "20")
        own = [c for c in curves if (c["policy"], c["seed"]) == (row["policy"], row["seed"])]
        success = {c["step"]: float(c["value"]) for c in own if c["metric"] == "success"}
        assert list(success) == ["100", "200", "300"]
        assert success[row["best_step"]] == max(success.values()) == float(row["validation_success"])
        assert len([c for c in own if c["metric"] == "loss"]) >= 3
    assert int(summary[0]["parameters"]) > int(summary[2]["parameters"])
    command = json.loads((out / "provenance.json").read_text())["command"]
    assert command.endswith("imitation toy/reach --policies MLP wide --data DATA --seeds 0 1")
    before = (out / "summary.csv").read_text()
    monkeypatch.setattr(imitation, "_spawn", lambda *_: pytest.fail("trained again"))
    main(replace(cfg, runs=tmp_path / "fresh machine"))
    assert (out / "summary.csv").read_text() == before


def test_what_is_missing_or_unknown_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    elsewhere = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    with pytest.raises(UserError, match="'adroit/door'"):
        main(ImitationConfig(("adroit/dor",), **elsewhere))
    with pytest.raises(UserError, match="'Diffusion'"):
        main(ImitationConfig(("adroit/door",), policies=("BeT", "Difusion"), **elsewhere))
    with pytest.raises(UserError, match=r"door-v0_demos\.pickle is missing"):
        main(ImitationConfig(("adroit/door",), data=tmp_path, **elsewhere))


def test_an_interrupted_training_goes_on(
    toys: dict[str, BaseConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(toys, "MLP", replace(TOY, training=replace(SHORT, save_every=100)))
    made = {}
    for name, at in (("whole", None), ("cut", 200)):
        cfg = ImitationConfig(("toy/reach",), ("MLP",), (0,), runs=tmp_path / name, results=tmp_path / name)
        if at is not None:
            monkeypatch.setattr(imitation, "Bars", lambda at=at: Interrupted(at, "imitating"))
            with pytest.raises(KeyboardInterrupt):
                main(cfg)
            monkeypatch.setattr(imitation, "Bars", Silent)
            monkeypatch.setattr(bases, "imitate", partial(_resuming, bases.imitate))
        main(cfg)
        (row,) = _rows(tmp_path / name / "imitation" / "summary.csv")
        made[name] = [row[column] for column in ("best_step", "validation_success", "test_success")]
        assert not list(tmp_path.glob("**/checkpoint.pt"))
    assert made["whole"] == made["cut"]


def _resuming(imitate: Any, *args: Any, **how: Any) -> Any:
    assert how["resume"]
    return imitate(*args, **how)


def test_the_same_demonstrations_are_imitated_and_on_door_by_a_transformer_of_the_papers_size() -> None:
    for trained in IMITATIONS.values():
        demos = {(base.task, base.source, base.file, base.episodes) for base in trained.values()}
        assert len(demos) == 1, "they imitate the same demonstrations"
        assert all(base.evaluate for base in trained.values())
    for name in ("BeT", "BeT, batch 2048", "BeT, Table 5"):
        made = BeTConfig(**IMITATIONS["adroit/door"][name].net)
        assert replace(made, standardize_obs=False) == BeTConfig()
    paper = IMITATIONS["adroit/door"]["BeT, Table 5"].training
    assert paper == ImitateConfig(steps=5_000, batch_size=2_048, lr=1e-4, eval_every=1_000)


def test_what_was_only_trained_is_tested_later(
    toys: dict[str, BaseConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = ImitationConfig(("toy/reach",), ("MLP",), (0,), runs=tmp_path, results=tmp_path)
    main(replace(cfg, test=False))
    assert not (tmp_path / "imitation" / "summary.csv").exists()
    monkeypatch.setattr(imitation, "train_base", lambda *_, **how: pytest.fail("trained again"))
    main(cfg)
    (row,) = _rows(tmp_path / "imitation" / "summary.csv")
    assert float(row["test_success"]) > 0.3
    assert row["device"] == "cpu"
