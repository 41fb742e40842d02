"""`pidec imitate` where a training is interrupted, and with a policy that answers in chunks."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from policy_decorator.base_policies.checkpoint import load_policy, parameter_hash, policy_card
from policy_decorator.cli import imitate as command
from policy_decorator.cli import main
from policy_decorator.cli.imitate import UNFINISHED, parse

TASK = "toy/reach-gym"


def words(text: str) -> list[str]:
    return text.split()


SHORT = words("--steps 60 --batch-size 16 --eval-every 20 --eval-episodes 4 --save-every 15 --workers 0 --quiet --json")
MLP = ["imitate", "mlp", "--width", "8", "--lr", "3e-3", *SHORT]
DIFFUSION = words("imitate diffusion --widths 8 16 --horizon 8 --step-size 8 --warmup-steps 5")


class Result(NamedTuple):
    code: int
    out: str
    err: str


def pidec(*args: str | Path) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(arg) for arg in args])
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "demos.h5"
    assert pidec("demos", TASK, "--out", path, "--episodes", "8").code == 0
    return path


def interrupt_at_evaluation(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = iter(range(1, 100)), command.run_episodes

    def run_episodes(*args: Any) -> Any:
        if next(calls) == n:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(command, "run_episodes", run_episodes)


def test_an_interrupted_training_is_resumed_as_if_it_had_not_been(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    told = pidec(*MLP, "--demos", demos, "--out", whole)
    assert told.code == 0, told.err
    with monkeypatch.context() as patch:
        interrupt_at_evaluation(2, patch)
        stopped = pidec(*MLP, "--demos", demos, "--out", broken)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert [path.name for path in broken.iterdir()] == [UNFINISHED]
    refused = pidec(*MLP, "--demos", demos, "--out", broken)
    assert refused.code == 2
    assert "unfinished training" in refused.err
    other = pidec(*MLP, "--lr", "1e-3", "--demos", demos, "--out", broken, "--resume")
    assert other.code == 2
    assert "had lr 0.003, not 0.001" in other.err
    resumed = pidec(*MLP, "--demos", demos, "--out", broken, "--resume")
    assert resumed.code == 0, resumed.err
    assert parameter_hash(load_policy(broken)) == parameter_hash(load_policy(whole))
    assert policy_card(broken)["details"]["history"] == policy_card(whole)["details"]["history"]
    assert not (broken / UNFINISHED).exists()


def test_nothing_to_resume_and_nothing_saved_yet(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = pidec(*MLP, "--demos", demos, "--out", tmp_path / "new", "--resume")
    assert nothing.code == 2
    assert "no unfinished training" in nothing.err
    interrupt_at_evaluation(1, monkeypatch)
    stopped = pidec(*MLP, "--demos", demos, "--out", tmp_path / "new", "--save-every", "30")
    assert stopped.code == 130
    assert "Nothing was saved yet" in stopped.err


def test_an_unfinished_training_can_be_begun_anew(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at_evaluation(2, patch)
        assert pidec(*MLP, "--demos", demos, "--out", tmp_path).code == 130
    anew = pidec(*MLP, "--lr", "1e-3", "--demos", demos, "--out", tmp_path, "--overwrite")
    assert anew.code == 0, anew.err
    assert not (tmp_path / UNFINISHED).exists()


def test_each_policy_has_its_own_training() -> None:
    bet, diffusion = (parse([name, "--demos", "d", "--out", "o"]) for name in ("bet", "diffusion"))
    assert (bet.training.batch_size, bet.training.schedule, bet.training.ema) == (2048, "constant", 0)
    assert (diffusion.training.batch_size, diffusion.training.schedule, diffusion.training.ema) == (
        1024,
        "cosine",
        0.9999,
    )
    assert parse(words("diffusion --demos d --out o --ema 0.99 --widths 256 512 1024")).training.ema == 0.99


def test_a_policy_that_answers_in_chunks_is_evaluated_and_refined(demos: Path, tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    trained = pidec(*DIFFUSION, *SHORT, "--lr", "1e-2", "--demos", demos, "--out", base)
    assert trained.code == 0, trained.err
    measured = pidec("evaluate", base, "--episodes", "4", "--workers", "0", "--quiet", "--json")
    assert measured.code == 0, measured.err
    steps = "--total-steps 200 --warmup-steps 80 --horizon 50 --eval-episodes 4 --test-episodes 4 --eval-every 100"
    nets = "--width 8 --depth 1 --batch-size 16 --save-every 100 --log-every 50 --steps-per-round 40"
    more = ["--workers", "0", "--quiet", "--json", "--force", *words(steps), *words(nets)]
    refined = pidec("refine", "--policy", base, "--out", run, *more)
    assert refined.code == 0, refined.err
    told = json.loads(refined.out)
    assert told["decisions"] == told["env_steps"] >= 2 * told["base_queries"]  # a chunk is several steps
