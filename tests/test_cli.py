"""The command line from end to end on the toy tasks: answers, refusals, exit codes."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from policy_decorator import __version__, api
from policy_decorator.base_policies import POLICIES
from policy_decorator.base_policies.checkpoint import policy_card, save_policy
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.cli import COMMANDS, main, play, refine
from policy_decorator.cli.listing import LISTS
from policy_decorator.cli.report import group
from policy_decorator.config import RefineConfig
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.disk import from_json, read_json, to_json
from policy_decorator.envs import TASKS
from policy_decorator.errors import UserError
from policy_decorator.evaluation import DEMOS, TEST
from policy_decorator.experiments.presets import PRESETS, settings
from policy_decorator.methods import METHODS, settings_of
from policy_decorator.progress import Silent
from policy_decorator.runlog import RunFolder

TASK = "toy/reach-gym"


def words(text: str) -> list[str]:
    return text.split()


NET = words("--width 16 --depth 1 --batch-size 32")
SHORT = NET + words("--total-steps 400 --warmup-steps 100 --horizon 100 --eval-episodes 8 --test-episodes 8")
SHORT += words("--eval-every 200 --save-every 200 --log-every 100 --steps-per-round 50 --workers 0 --quiet")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The one JSON value that stdout holds."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def pidec(*args: str | Path) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(arg) for arg in args])
    return Result(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Made:
    """What demos, imitate and refine left behind, and what they answered."""

    demos: Path
    base: Path
    run: Path
    told: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("cli")
    demos, base, run = folder / "demos.h5", folder / "base", folder / "run"
    told = {"demos": pidec("demos", TASK, "--out", demos, "--episodes", "20", "--noise", "0.2", "--json").value}
    training = words("--steps 240 --eval-every 80 --eval-episodes 8 --lr 3e-3 --workers 0 --json")
    told["imitate"] = pidec("imitate", "mlp", "--demos", demos, "--out", base, *NET, *training).value
    own = ["--bound", "0.3", "--demo-share", "0.25", "--overlap", "--json"]
    told["refine"] = pidec("refine", "--policy", base, "--demos", demos, "--out", run, *SHORT, *own).value
    return Made(demos, base, run, told)


@pytest.fixture
def run_copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.run, tmp_path / "run"))


# ---- from demonstrations to a report --------------------------------------------------------------------------


def test_demonstrations_and_failures_are_given_together(made: Made, tmp_path: Path) -> None:
    """Rung A of App. F.3."""
    failed, run = tmp_path / "rollouts.h5", tmp_path / "run"
    own = ["--from-policy", made.base, "--keep-failures", "--episodes", "4", "--quiet"]
    assert pidec("demos", TASK, "--out", failed, *own).code == 0
    rung = words("--method cal-ql --online conservative --offline-data all --n-step 1 --offline-updates 4 --json")
    short = words(" ".join(SHORT).replace("--horizon 100", ""))
    result = pidec("refine", "--policy", made.base, "--demos", made.demos, failed, "--out", run, *short, *rung)
    assert result.code == 0, result.err
    kept = Demonstrations.load(run / "demos.h5")
    assert kept.episodes == 24
    assert [part["episodes"] for part in kept.details["joined"]] == [20, 4]
    assert result.value["offline_updates"] == 4


def test_demos_are_recorded_on_seeds_of_their_own(made: Made) -> None:
    demos = Demonstrations.load(made.demos)
    assert made.told["demos"]["episodes"] == demos.episodes == 20
    assert demos.episode_success.all()
    assert demos.seeds.min() >= DEMOS
    assert made.told["demos"]["details"]["noise"] == 0.2
    assert made.told["demos"]["file"] == str(made.demos)


@pytest.mark.parametrize("named", [["--task", TASK], [f"--task={TASK}"]])
def test_a_task_may_be_named_as_in_refine(named: list[str], tmp_path: Path) -> None:
    given = ["--episodes", "2", "--json", "--quiet"]
    told = pidec("demos", *given, *named, "--out", tmp_path / "a.h5").value
    assert told | {"file": ""} == pidec("demos", TASK, *given, "--out", tmp_path / "b.h5").value | {"file": ""}
    assert pidec("demos", "--out", tmp_path / "c.h5", "--task").code == 2


def test_demonstrations_are_named_after_their_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--task", TASK, "--episodes", "2", "--json", "--quiet"]
    assert pidec("demos", *given).value["file"] == "toy-reach-gym.h5"
    assert Demonstrations.load(tmp_path / "toy-reach-gym.h5").episodes == 2
    assert "exists" in pidec("demos", *given).err


def test_imitate_keeps_the_best_checkpoint_and_says_how_it_was_made(made: Made) -> None:
    told, card = made.told["imitate"], policy_card(made.base)
    measured = [(row["success"], row["step"]) for row in told["history"] if "success" in row]
    assert [step for _, step in measured] == [80, 160, 240]
    assert (told["best_success"], told["best_step"]) == max(measured)
    assert card["config"]["width"] == 16
    assert card["task"] == TASK
    assert card["details"]["training"]["batch_size"] == 32
    assert card["details"]["demonstrations"]["episodes"] == 20
    assert card["details"]["history"] == told["history"]


def test_refine_takes_flat_options_and_the_rest_from_the_preset(made: Made) -> None:
    config = from_json(RefineConfig, read_json(made.run / "config.json"))
    quick = settings("quick", TASK)
    assert (config.learn.bound, config.learn.horizon, config.learn.demo_share) == (0.3, 100, 0.25)
    assert (config.learn.nets.width, config.learn.sac.batch_size) == (16, 32)
    assert (config.train.total_steps, config.eval_episodes, config.policy) == (400, 8, str(made.base))
    assert config.train.overlap
    assert config.task == TASK  # from policy.json
    assert (config.envs, config.learn.sac.gamma) == (quick.envs, quick.learn.sac.gamma)


def test_refine_answers_with_the_summary(made: Made) -> None:
    told = made.told["refine"]
    assert told["gain"] == pytest.approx(told["refined_success"] - told["base_success"])
    assert told["gain"] * told["test_episodes"] == pytest.approx(told["fixed"] - told["broken"])
    assert told["env_steps"] >= 400
    assert told["updates"] > 0
    assert Path(told["report"]).is_file()
    summary = read_json(made.run / "summary.json")
    assert {key: told[key] for key in summary} == summary


def test_evaluating_a_run_repeats_its_final_comparison(made: Made) -> None:
    told = pidec("evaluate", made.run, "--episodes", "8", "--workers", "0", "--quiet", "--json").value
    final, base = (RunFolder.open(made.run).evaluations(name)[-1] for name in ("final", "base"))
    rows = told["outcomes"]
    assert [row["seed"] for row in rows] == final["seeds"] == list(range(TEST, TEST + 8))
    assert [row["refined"]["success"] for row in rows] == final["success"]
    assert [row["refined"]["steps"] for row in rows] == final["lengths"]
    assert [row["base"]["success"] for row in rows] == base["success"]
    fixed = sum(row["refined"]["success"] and not row["base"]["success"] for row in rows)
    assert told["gain"]["fixed"] == fixed
    assert told["base"]["ci95"] == pytest.approx(made.told["refine"]["base_ci95"])


def test_evaluate_reads_a_base_and_a_refined_folder(made: Made) -> None:
    base = pidec("evaluate", made.base, "--episodes", "8", "--workers", "0", "--quiet", "--json").value
    refined = pidec("evaluate", made.run / "refined", "--episodes", "8", "--workers", "0", "--quiet", "--json").value
    assert base["policy"] == "mlp"
    assert "refined" not in base
    assert [row["base"] for row in base["outcomes"]] == [row["base"] for row in refined["outcomes"]]
    assert refined["refined"]["success_rate"] == made.told["refine"]["refined_success"]


def test_tables_and_progress_are_for_people(made: Made) -> None:
    result = pidec("evaluate", made.run, "--episodes", "8", "--workers", "0")
    assert result.code == 0
    assert "base policy" in result.out
    assert "95 % interval" in result.out
    assert "evaluating refined" in result.err


def test_resume_needs_the_run_folder_alone(run_copy: Path, made: Made) -> None:
    config = read_json(run_copy / "config.json")
    config["train"]["total_steps"] = 500  # as if it had been interrupted at 400
    (run_copy / "config.json").write_text(json.dumps(config))
    told = pidec("refine", "--out", run_copy, "--resume", "--quiet", "--json").value
    assert told["env_steps"] >= 500 > made.told["refine"]["env_steps"]
    assert told["updates"] > made.told["refine"]["updates"]
    assert told["base_parameters_sha256"] == made.told["refine"]["base_parameters_sha256"]


def test_resume_takes_its_own_settings_and_a_longer_budget(made: Made) -> None:
    options = refine.parse(["--out", str(made.run), "--resume", "--total-steps", "900"])
    before = from_json(RefineConfig, read_json(made.run / "config.json"))
    assert options.settings == replace(before, train=replace(before.train, total_steps=900))
    refused = pidec("refine", "--out", made.run, "--resume", "--bound", "0.2")
    assert refused.code == 2
    assert "other settings" in refused.err


def test_refined_policies_can_be_recorded_and_refined_again(made: Made, tmp_path: Path) -> None:
    told = pidec("demos", TASK, "--out", tmp_path / "d.h5", "--from-policy", made.run, "--episodes", "2", "--json")
    assert told.value["source"] == f"policy {made.run}"
    assert refine.parse(["--policy", str(made.run)]).settings.task == TASK


def test_a_base_that_is_not_stored_with_its_residual_is_found_where_the_run_says(made: Made, run_copy: Path) -> None:
    shutil.rmtree(run_copy / "refined" / "base")
    card = read_json(run_copy / "refined" / "refined.json")
    (run_copy / "refined" / "refined.json").write_text(json.dumps(card | {"base": "external"}))
    measure = ["--episodes", "8", "--workers", "0", "--quiet", "--json"]
    told, stored = (pidec("evaluate", run, *measure).value for run in (run_copy, made.run))
    assert told["outcomes"] == stored["outcomes"]
    config = read_json(run_copy / "config.json")
    (run_copy / "config.json").write_text(json.dumps(config | {"policy": "yours"}))
    assert "load it with" in pidec("evaluate", run_copy, *measure).err


def test_played_are_the_episodes_of_evaluate(made: Made) -> None:
    """Without drawing them: the toy tasks draw nothing."""
    task, measure = TASKS[TASK], words("--episodes 4 --envs 1 --workers 0 --quiet --json")
    outcomes = pidec("evaluate", made.run, *measure).value["outcomes"]
    for folder, who in ((made.base, "base"), (made.run, "refined")):
        source, played = play._rollouts(play.Options(TASK, Path("x.mp4"), policy=folder, episodes=4), task, Silent())
        assert source == f"policy {folder}"
        assert [(e.seed, e.success, len(e.actions)) for e in played] == [
            (row["seed"], row[who]["success"], row[who]["steps"]) for row in outcomes
        ]


def test_report_writes_one_run_again(run_copy: Path) -> None:
    (run_copy / "report.html").unlink()
    told = pidec("report", run_copy, "--json").value
    assert told["report"] == str(run_copy / "report.html")
    assert (run_copy / "report.html").stat().st_size > 0


def test_report_compares_several_runs(made: Made, run_copy: Path, tmp_path: Path) -> None:
    config = read_json(run_copy / "config.json")
    (run_copy / "config.json").write_text(json.dumps(config | {"seed": 1}))
    told = pidec("report", made.run, run_copy, "--out", tmp_path / "both.png", "--json").value
    assert told["groups"] == {"policy-decorator": [str(made.run), str(run_copy)]}
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_runs_are_grouped_by_what_differs() -> None:
    base = settings("quick", TASK)
    configs = {
        Path("a"): base,
        Path("b"): replace(base, seed=1),
        Path("c"): replace(base, learn=replace(base.learn, bound=0.1)),
        Path("d"): replace(base, method="residual-rl", learn=settings_of("residual-rl", base.learn)),
    }
    groups = group({path: to_json(config) for path, config in configs.items()})
    assert groups == {
        "policy-decorator, bound 0.6": [Path("a"), Path("b")],
        "policy-decorator, bound 0.1": [Path("c")],
        "residual-rl": [Path("d")],
    }


# ---- what can be named ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "known"), [("tasks", TASKS), ("policies", POLICIES), ("methods", METHODS), ("presets", PRESETS)]
)
def test_lists_are_the_registries(kind: str, known: Any) -> None:
    rows = pidec("list", kind, "--json").value
    assert [row["name"] for row in rows] == list(known)
    table = pidec("list", kind).out
    assert all(name in table for name in known)


def test_list_tasks_tells_the_sizes() -> None:
    row = next(row for row in pidec("list", "tasks", "--json").value if row["name"] == TASK)
    assert (row["obs_size"], row["action_size"], row["max_steps"], row["expert"]) == (4, 2, 25, True)
    assert row["success"] == TASKS[TASK].success
    assert (row["runs"], row["why_not"], row["images"]) == (True, None, [])


def test_list_tasks_tells_why_one_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    listed = pidec("list", "tasks", "--json").value
    row = next(row for row in listed if row["name"] == "adroit/door")
    assert (row["runs"], row["why_not"]) == (False, 'pip install "policy-decorator[adroit]"')
    table = " ".join(pidec("list", "tasks").out.split())
    assert (
        'Not here: adroit/door, adroit/pen, adroit/hammer, adroit/relocate. pip install "policy-decorator[adroit]"'
        in table
    )
    assert 'pip install "policy-decorator[metaworld]"' in table


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        ("refin", "'refine'"),
        ("list task", "'tasks'"),
        ("demos toy/reech --out d.h5", "'toy/reach'"),
        ("imitate bett --demos d --out b", "'bet'"),
        ("refine --task toy/reech --policy b", "'toy/reach'"),
        ("refine --task toy/reach --preset quik --policy {base}", "'quick'"),
        ("refine --policy {base} --method residul-rl", "'residual-rl'"),
        ("evaluate {base} --task toy/reech", "'toy/reach'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(args: str, hint: str, made: Made) -> None:
    result = pidec(*args.format(base=made.base).split())
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("pidec: Unknown ")
    assert f"Did you mean {hint}?" in result.err
    assert result.err.count("\n") == 1


# ---- refusals -------------------------------------------------------------------------------------------------

REFUSED = [
    ("demos toy/reach --out d.h5 --from-policy {base} --from-dapg x", "contradict each other"),
    ("demos toy/reach --out d.h5 --download", "--from-minari"),
    ("demos toy/reach --out d.h5 --from-dapg x --noise 0.1 --keep-failures", "--noise, --keep-failures"),
    ("demos toy/reach --out d.h5 --from-d4rl x --seed 3", "--seed is about recording, but --from-d4rl reads a file"),
    ("demos adroit/door --out d.h5 --from-d4rl {demos}", "is HDF5, but no D4RL file: it has no rewards"),
    ("demos toy/reach --out d.h5 --seed -1", "--seed must be"),
    ("demos toy/reach --out {demos}", "--overwrite"),
    ("demos adroit/pen --out d.h5", "no scripted expert"),
    ("demos adroit/pen --out d.h5 --from-policy {base}", "takes 4 observations"),
    ("imitate --demos {demos}", "which policy"),
    ("imitate mlp --demos {demos} --out {base}", "already holds a policy"),
    ("imitate mlp --demos {demos} --out {run} --overwrite", "holds no policy"),
    ("imitate mlp --demos missing.h5 --out b", "no demonstrations at missing.h5"),
    ("imitate mlp --demos {demos} --out b --first 21", "but there are 20"),
    ("imitate mlp --demos {demos} --out b --eval-episodes 0", "--eval-episodes must be at least 1"),
    ("imitate mlp --demos {demos} --out b --device nowhere", "device 'nowhere'"),
    ("refine --policy {base} --out {run}", "already holds a run"),
    ("refine --policy {run}/nothing", "is missing"),
    ("refine --policy {base} --task metaworld/reach", "takes 4 observations"),
    ("refine --policy {base} --task toy/reach --demos {demos} --out r", "not of 'toy/reach'"),
    ("refine --policy {base} --method residual-rl --bound 0.2", "residual-rl has no --bound"),
    ("refine --policy {base} --demo-share 0.5", "give --demos too"),
    ("refine --policy {base} --demos {demos} {demos} --out r", "named twice"),
    ("refine --policy {base} --total-steps 5000", "nothing is learned"),
    ("refine --policy {base} --envs 0", "--envs must be at least 1"),
    ("refine --policy {base} --gamma 1.5", "--gamma must be in [0, 1]"),
    ("refine --policy {base} --lr nan", "--lr must be above 0"),
    ("refine --policy {base} --device cpu --cuda-graphs on", "CUDA graphs need a CUDA device"),
    ("refine --resume", "--out RUN --resume"),
    ("refine --resume --out {base}", "not a run folder"),
    ("refine --resume --out {run} --overwrite --preset paper", "leave out --overwrite, --preset"),
    ("evaluate {demos}", "a function is refined from Python"),
    ("evaluate {run} --episodes 0", "--episodes must be at least 1"),
    ("play toy/reach --out x.mp4", "draws no pictures"),
    ("play adroit/door --out x.avi", "ends in .mp4"),
    ("play adroit/door --out x.mp4 --policy {base} --expert", "--policy and --expert contradict"),
    ("play adroit/door --out x.mp4 --demos {demos} --seed 3", "choose with --episode"),
    ("play adroit/door --out x.mp4 --episode 3", "give --demos FILE"),
    ("play adroit/door --out x.mp4 --episodes 0", "--episodes must be at least 1"),
    ("play adroit/door --out x.mp4 --fps 0", "--fps must be above 0"),
    ("report {run} --out x.png", "--out is for the picture of several"),
    ("report {run} {run}", "given twice"),
    ("report {base}", "not a run folder"),
    ("demo --episodes 0", "--episodes must be at least 1"),
]


@pytest.mark.parametrize(("args", "reason"), REFUSED)
def test_wrong_input_is_refused_in_one_line(
    args: str, reason: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pidec(*args.format(demos=made.demos, base=made.base, run=made.run).split())
    assert result.code == 2
    assert result.out == ""
    last = result.err.splitlines()[-1]  # a policy made for another task is warned of before
    assert last.startswith("pidec: ")
    assert reason in last
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_demonstrations_that_are_not_finite_are_refused(made: Made, tmp_path: Path) -> None:
    demos = Demonstrations.load(made.demos)
    broken = demos.observations.copy()
    broken[3, 1] = np.nan
    replace(demos, observations=broken).save(tmp_path / "nan.h5")
    for command in (("imitate", "mlp"), ("refine", "--policy", made.base)):
        result = pidec(*command, "--demos", tmp_path / "nan.h5", "--out", tmp_path / "out")
        assert result.code == 2
        assert "not finite" in result.err
        assert not (tmp_path / "out").exists()


def test_a_base_that_never_succeeds_needs_force_and_overwrite_keeps_what_was_there(
    run_copy: Path, tmp_path: Path
) -> None:
    hopeless = MLPPolicy(MLPConfig(width=4, depth=1), 4, 2)
    with torch.no_grad():
        for parameter in hopeless.parameters():
            parameter.zero_()  # it never moves
    save_policy(hopeless, tmp_path / "base", details={"task": TASK})
    (run_copy / "mine.txt").write_text("kept")
    command = ["refine", "--policy", tmp_path / "base", "--out", run_copy, *SHORT]
    refused = pidec(*command, "--overwrite")
    assert refused.code == 2
    assert "none of 8 episodes" in refused.err
    assert not run_copy.exists()  # else the next try would be refused for another reason
    assert [old.read_text() for old in tmp_path.glob("run.old-*/mine.txt")] == ["kept"]
    assert pidec(*command, "--force", "--json").value["base_success"] == 0


# ---- exit codes, help, streams --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("demos", ["TASK", "--from-dapg", "--from-minari", "--from-policy", "--keep-failures", "--noise"]),
        ("imitate", ["mlp", "bet", "--demos", "--batch-size", "--first", "--no-evaluate", "--eval-every"]),
        ("imitate bet", ["--context", "--clusters", "--steps", "--lr", "--device"]),
        ("refine", ["--bound", "--horizon", "--total-steps", "--n-step", "--gamma", "--width", "--envs", "--resume"]),
        ("evaluate", ["FOLDER", "--episodes", "--first-seed", "--task"]),
        ("play", ["TASK", "--out", "--demos", "--episode", "--policy", "--expert", "--seed", "--episodes", "--fps"]),
        ("report", ["RUN", "--out"]),
        ("list", ["KIND", "presets"]),
        ("demo", ["--noise", "--seed", "--out"]),
    ],
)
def test_help_explains(command: str, options: list[str]) -> None:
    result = pidec(*command.split(), "--help")
    assert result.code == 0
    assert result.err == ""
    assert [name for name in [*options, "--json"] if name not in result.out] == []


def test_help_shows_the_defaults_of_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # one column of options
    shown = pidec("refine", "--preset", "paper", "--task", "adroit/door", "--help").out
    words = " ".join(shown.replace("│", " ").split())  # defaults may be broken over two lines
    assert "(default: 3000000)" in words
    assert "(default: adroit/door)" in words


@pytest.mark.parametrize("args", [(), ("-h",), ("--help",)])
def test_the_overview_names_every_command(args: tuple[str, ...]) -> None:
    result = pidec(*args)
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert [words[0] for words in lines if words and words[0] in COMMANDS] == list(COMMANDS)
    assert max(map(len, result.out.splitlines())) <= 100


def test_version() -> None:
    assert pidec("--version") == (0, f"pidec {__version__}\n", "")


def test_wrong_options_are_named() -> None:
    result = pidec("evaluate", "x", "--episods", "3")
    assert result.code == 2
    assert result.out == ""
    assert "--episodes" in result.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--critic-subset 3", "critic_subset must be between 1 and"),
        ("--demo-share-end 0.1", "demo_share_end and demo_share_steps go together"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(
    options: str, reason: str, made: Made, tmp_path: Path
) -> None:
    result = pidec("refine", "--policy", made.base, "--out", tmp_path / "run", *options.split())
    assert result.code == 2
    assert reason in " ".join(words(result.err))
    assert not (tmp_path / "run").exists()


def test_an_interrupt_says_how_to_go_on(made: Made, run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "run", stop)
    result = pidec("refine", "--out", run_copy, "--resume")
    assert result.code == 130
    assert f"pidec refine --out {run_copy} --resume" in result.err
    started = pidec("refine", "--policy", made.base, "--out", run_copy.parent / "new")
    assert started.code == 130
    assert "no checkpoint yet" in started.err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIDEC_DEBUG", "1")
    result = pidec("refin")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("pidec: ")


def test_what_simulators_print_does_not_reach_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> list[dict[str, Any]]:
        print("a simulator says hello")
        return [{"name": "x"}]

    monkeypatch.setitem(LISTS, "methods", rows)  # pyright: ignore[reportArgumentType]
    result = pidec("list", "methods", "--json")
    assert result.value == [{"name": "x"}]
    assert "hello" in result.err


HEAVY = ("torch", "sklearn", "matplotlib", "metaworld", "gymnasium_robotics", "mujoco", "minari")


def imported_by(*args: str) -> list[str]:
    """Which of `HEAVY` a command imports, in a process of its own."""
    code = f"import sys; from policy_decorator.cli import main; main({list(args)}); "
    code += f"print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=dict(os.environ))
    return done.stderr.split()


def test_the_overview_imports_nothing_heavy() -> None:
    assert imported_by("--help") == []


def test_listing_tasks_imports_no_simulator() -> None:
    assert set(imported_by("list", "tasks", "--json")) <= {"torch"}


# ---- settings from JSON ---------------------------------------------------------------------------------------


def every_preset() -> Iterator[RefineConfig]:
    for preset in PRESETS:
        config = settings(preset, "adroit/door", kind="bet")
        yield config
        yield replace(config, max_steps=7, replay_capacity=9, workers=2, keep="last")


def test_settings_survive_json() -> None:
    for config in every_preset():
        assert from_json(RefineConfig, json.loads(json.dumps(to_json(config)))) == config


def test_json_that_does_not_fit_is_refused() -> None:
    good = to_json(settings("quick", TASK))
    wrong = [
        (good | {"envs": "8"}, "envs is '8'"),
        (good | {"envs": True}, "envs is True"),
        (good | {"max_steps": 1.5}, "max_steps is 1.5"),
        (good | {"keep": "worst"}, "keep is 'worst'"),
        (good | {"learn": good["learn"] | {"bownd": 1}}, "learn holds bownd"),
        (good | {"train": 3}, "train is 3"),
        ({key: value for key, value in good.items() if key != "task"}, "task"),
    ]
    for value, reason in wrong:
        with pytest.raises(UserError, match=r"config\.json") as refused:
            from_json(RefineConfig, value, "config.json")
        assert reason in str(refused.value)


def test_tuples_and_paths_are_read_back() -> None:
    assert from_json(tuple[float, ...], [1, 2.5]) == (1, 2.5)
    assert from_json(tuple[int, Path] | None, [1, "a"]) == (1, Path("a"))
    with pytest.raises(UserError):
        from_json(tuple[int, int], [1, 2, 3])
    with pytest.raises(TypeError):
        from_json(np.ndarray, [1])
