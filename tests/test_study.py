"""The published measurements are what they say they are."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupted import Interrupted
from torch import nn

from policy_decorator import api, provenance, runlog
from policy_decorator.base_policies import build
from policy_decorator.base_policies.checkpoint import parameter_hash
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.bench.methods import sample_run
from policy_decorator.disk import atomic_csv
from policy_decorator.errors import or_exit
from policy_decorator.experiments import comparisons, study
from policy_decorator.experiments.bases import BASES
from policy_decorator.experiments.demo import TASK, DemoConfig
from policy_decorator.experiments.pictures import pictures
from policy_decorator.experiments.presets import settings
from policy_decorator.experiments.tables import SUMMARY, Key, Tables
from policy_decorator.progress import Silent

SHORT = {"warmup_steps": 60, "log_every": 50, "eval_every": 400, "save_every": 800}


def test_every_entry_names_a_base_and_resolves() -> None:
    for entries in study.STUDIES.values():
        assert len({(e.base, e.label) for e in entries}) == len(entries), "two runs would share a folder"
        for entry in entries:
            cfg = study.config(entry, seed=3)
            assert cfg.seed == 3
            assert cfg.task == BASES[entry.base].task


def test_every_run_that_compares_methods_can_be_built() -> None:
    entries = (*comparisons.OTHER_METHODS, *comparisons.DPPO, *comparisons.FINE_TUNING, *comparisons.APPENDIX_F)
    learned = [(cfg.method, cfg.learn) for cfg in (study.config(entry, seed=0) for entry in entries)]
    for k, (method, settings_of_it) in enumerate(learned):
        if (method, settings_of_it) not in learned[:k]:
            sample_run(method, settings=settings_of_it)


def test_conservative_critics_balance_as_the_originals_do() -> None:
    """Cal-QL's rewards on Adroit are -5, and 5 at the success that ends an episode; ours 0 and 1."""
    gamma, steps = 0.99, np.arange(200)
    theirs = np.array([-5 * (gamma ** np.arange(t)).sum() + 5 * gamma**t for t in steps])
    spread = np.polyfit(gamma**steps, theirs, 1)[0]
    entries = [e for e in (*comparisons.FINE_TUNING, *comparisons.APPENDIX_F) if "cql" in e.learn]
    assert len(entries) > 5
    for cfg in (study.config(e, seed=0) for e in entries):
        offline = sample_run(cfg.method, settings=cfg.learn)[1].offline
        learner: Any = offline and offline.learner
        assert (learner.gap_weight * spread, learner.gap_temperature * spread) == pytest.approx((1, 1))


def test_the_demo_study_is_make_demo() -> None:
    (entry,) = study.STUDIES["demo"]
    made = settings("quick", TASK, total_steps=DemoConfig.total_steps)
    assert study.config(entry, seed=1) == replace(made, seed=1, policy=BASES[TASK].policy)
    assert (DemoConfig.episodes, DemoConfig.noise) == (BASES[TASK].episodes, BASES[TASK].noise)


def test_residual_rl_differs_in_nothing_but_its_exploration() -> None:
    entries = study.STUDIES["controlled-exploration"]
    assert len(entries) == 6
    for ours, theirs in zip(entries[::2], entries[1::2], strict=True):
        assert theirs.label == ours.label.replace("Policy Decorator", "Residual RL")
        a, b = study.config(ours, 0), study.config(theirs, 0)
        assert (b.learn.bound, b.learn.horizon) == (1.0, 0)
        assert replace(a, learn=replace(a.learn, bound=1.0, horizon=0)) == b


def test_the_pictures_of_appendix_f_show_all_of_it_once() -> None:
    """Each method but the plain one is in the picture of its section; base policies have a line where it is one."""
    entries, tables = study.STUDIES["appendix-f"], Tables()
    for entry in entries:
        key = BASES[entry.base].task, entry.label, 0
        tables.summaries[key] = ["0.4" if name == "base_success" else "" for name in SUMMARY]
        tables.curves[key] = [(0, metric, 0.5) for metric in ("train/success", "eval/full", "sac/temperature")]
    made = dict(pictures("appendix-f", entries, tables, list(tables.summaries)))
    shown = {name: [str(line.get_label()) for line in figure.axes[0].get_lines()] for name, figure in made.items()}
    assert {name: len(labels) for name, labels in shown.items()} == {
        "f3-cal-ql": 5, "f4-horizon": 6, "f51-critics": 4, "f52-warm-start": 5, "f52-temperature": 4,
    }  # fmt: skip
    drawn = {label.removesuffix(" (1 seed)") for labels in shown.values() for label in labels}
    assert drawn == {entry.label for entry in entries} | {"base policy"}
    for_f4 = [key for key in tables.summaries if key[1].startswith("F.4")]
    assert [name for name, _ in pictures("appendix-f", entries, tables, for_f4)] == ["f4-horizon"]


@pytest.mark.usefixtures("unreported")
def test_a_study_is_collected_from_its_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = tuple(
        study.Entry("toy", label, total_steps=800, bound=bound, train=SHORT, run={"eval_episodes": 4})
        for label, bound in (("small", 0.1), ("large", 0.5))
    )
    monkeypatch.setitem(study.STUDIES, "toy", entries)
    monkeypatch.setitem(BASES, "toy", replace(BASES[TASK], task="toy/reach"))
    cfg = study.StudyConfig("toy", seeds=(0, 1), runs=tmp_path / "runs", results=tmp_path / "results")
    policy = build("mlp", 4, 2, MLPConfig())
    for index, entry in enumerate(entries):
        for seed in cfg.seeds:
            run = replace(study.config(entry, seed), test_episodes=4)
            api.run(run, policy, out=study.folder(cfg, index, seed), force=True)
    study.main(cfg)  # all runs are there: none is run again
    out = tmp_path / "results" / "toy"
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [(r["method"], r["seed"], r["bound"]) for r in rows] == [
        ("small", "0", "0.1"), ("small", "1", "0.1"), ("large", "0", "0.5"), ("large", "1", "0.5"),
    ]  # fmt: skip
    assert {r["env_steps"] for r in rows} == {"800"}
    assert {r["base_parameters_sha256"] for r in rows} == {parameter_hash(policy)}
    curves = list(csv.DictReader((out / "curves.csv").open()))
    assert {r["metric"] for r in curves} >= {"train/success", "eval/full", "eval/behaviour", "train/epsilon"}
    assert (out / "toy-reach.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "provenance.json").exists()


@pytest.mark.usefixtures("unreported")
def test_what_the_tables_hold_is_kept_without_its_run_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = tuple(study.Entry("toy", label, train=SHORT, run={"eval_episodes": 4}) for label in ("one", "other"))
    monkeypatch.setitem(study.STUDIES, "toy", entries)
    monkeypatch.setitem(BASES, "toy", replace(BASES[TASK], task="toy/reach"))
    policy, spawned = build("mlp", 4, 2, MLPConfig()), []

    def run(cfg: study.StudyConfig, index: int, seed: int) -> int:
        spawned.append((index, seed))
        short = replace(study.config(entries[index], seed), test_episodes=4)
        short = replace(short, train=replace(short.train, total_steps=400))
        api.run(short, policy, out=study.folder(cfg, index, seed), force=True)
        return 0

    monkeypatch.setattr(study, "_spawn", run)
    cfg = study.StudyConfig("toy", seeds=(0,), runs=tmp_path / "runs", results=tmp_path / "results", labels=("one",))
    study.main(cfg)
    out = tmp_path / "results" / "toy"
    first = {name: (out / name).read_text() for name in ("summary.csv", "curves.csv")}
    assert json.loads((out / "provenance.json").read_text())["runs_to_come"] == 1
    elsewhere = replace(cfg, runs=tmp_path / "fresh machine", labels=())
    study.main(elsewhere)
    assert spawned == [(0, 0), (1, 0)]  # the first is not run again, and its lines stay as they were
    for name, lines in first.items():
        assert (out / name).read_text().startswith(lines)
    assert len((out / "summary.csv").read_text().splitlines()) == 3
    study.main(replace(elsewhere, seeds=(1,), labels=("one",)))
    assert spawned[2:] == [(0, 1)]
    assert len((out / "summary.csv").read_text().splitlines()) == 4  # the other seed's are there still
    before = (out / "provenance.json").read_text()
    study.main(replace(elsewhere, seeds=(0,), runs=tmp_path / "nothing runs here"))
    assert (out / "provenance.json").read_text() == before  # of the machine that measured
    assert "--again" in capsys.readouterr().out
    study.main(replace(cfg, again=True))
    assert spawned[3:] == []  # of this machine's own run folders
    study.main(replace(cfg, again=True, runs=tmp_path / "again"))
    assert spawned[3:] == [(0, 0)]


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("code", ["the same", "another", "changed"])
def test_an_interrupted_run_goes_on_if_it_is_of_this_very_code(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady: nn.Module
) -> None:
    entry = study.Entry("toy", "one", total_steps=800, train=SHORT | {"save_every": 200}, run={"eval_episodes": 20})
    monkeypatch.setitem(study.STUDIES, "toy", (replace(entry, run={**entry.run, "test_episodes": 4}),))
    monkeypatch.setitem(BASES, "toy", replace(BASES[TASK], task="toy/reach"))
    monkeypatch.setattr(study, "make_base", lambda *_: (steady, None))
    cfg = study.StudyConfig("toy", runs=tmp_path)

    def run(revision: str, display: Silent, dirty: bool = False) -> None:
        for module in (provenance, runlog, study):
            monkeypatch.setattr(module, "git_state", lambda: {"revision": revision, "dirty": dirty})
        monkeypatch.setattr(study, "Bars", lambda: display)
        study.run_one(cfg, 0, 0)

    dirty = code == "changed"
    with pytest.raises(KeyboardInterrupt):
        run("first", Interrupted(at=600), dirty)
    run("second" if code == "another" else "first", Silent(), dirty)
    made = runlog.RunFolder.open(study.folder(cfg, 0, 0))
    assert made.summary()["env_steps"] == 800
    resumed = [400 <= again["env_steps"] < 600 for again in made.provenance().get("resumed", [])]
    assert resumed == ([True] if code == "the same" else [])


def test_tables_with_fewer_columns_are_read_too(tmp_path: Path) -> None:
    key = ("toy/reach", "one", 0)
    known = Tables({key: [*key[:1], "mlp", *key[1:], *range(len(SUMMARY) - 4)]}, {key: [(0, "eval/full", 0.5)]})
    known.write(tmp_path, [key])
    rows = list(csv.reader((tmp_path / "summary.csv").open()))
    atomic_csv(tmp_path / "summary.csv", rows[0][:-1], [rows[1][:-1]])
    read = Tables.read(tmp_path)
    assert read.of(key, "git_dirty") == rows[1][rows[0].index("git_dirty")]
    assert read.of(key, SUMMARY[-1]) == ""


def test_methods_are_compared_by_means_over_their_seeds(tmp_path: Path) -> None:
    """Three seeds of one method, one of another, in the order in which they are asked for."""

    def row(key: Key, base: float, refined: float) -> list[Any]:
        known = {"task": key[0], "method": key[1], "seed": key[2], "base_success": base, "refined_success": refined}
        known |= {"gain": refined - base, "fixed": 7, "broken": 2, "test_episodes": 50}
        return [known.get(name, "") for name in SUMMARY]

    outcomes = {("door", "ours", 0): (0.4, 0.6), ("door", "ours", 1): (0.5, 0.8), ("door", "ours", 2): (0.6, 1.0)}
    outcomes[("door", "theirs", 0)] = (0.4, 0.1)
    curve = [(0, "train/success", 0.5), (1, "train/success", 0.1), (2, "train/success", 0.3), (2, "eval/full", 0.7)]
    tables = Tables({key: row(key, *rates) for key, rates in outcomes.items()}, dict.fromkeys(outcomes, curve))
    tables.curves["door", "ours", 2] = [(2, "eval/full", 0.1)]  # whose training finished no episode
    tables.write(tmp_path, list(outcomes))
    ours, theirs = csv.DictReader((tmp_path / "by_method.csv").open())
    assert [ours[name] for name in ("seeds", "base_success", "refined_success", "gain")] == ["3", "0.5", "0.8", "0.3"]
    assert [ours[name] for name in ("fixed", "broken", "test_episodes")] == ["21", "6", "150"]
    half = 4.3027 * 0.1 / 3**0.5  # Student's t of 2 degrees of freedom at 97.5 %
    assert float(ours["gain_low"]) == pytest.approx(0.3 - half, abs=1e-4)
    assert float(ours["gain_high"]) == pytest.approx(0.3 + half, abs=1e-4)
    assert [ours[name] for name in ("last_success", "training_lowest", "training_last")] == ["0.5", "0.1", "0.3"]
    assert (theirs["gain"], theirs["gain_low"], theirs["gain_high"]) == ("-0.3", "", "")


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        or_exit(lambda: study.main(study.StudyConfig("recipess", results=tmp_path)))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Unknown study 'recipess'. Did you mean 'recipes'?")
