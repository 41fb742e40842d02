"""The preset `paper` is what the paper's tables and the released code say."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from policy_decorator import api
from policy_decorator.base_policies import build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import save_policy
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.cli import main
from policy_decorator.envs import TASKS
from policy_decorator.errors import UserError
from policy_decorator.experiments.presets import TABLE_8, settings, unlisted
from policy_decorator.train import TrainConfig


@pytest.mark.parametrize("kind", ["bet", "diffusion", "mlp"])
@pytest.mark.parametrize("task", sorted(name for name in TASKS if name.startswith(("maniskill", "adroit"))))
def test_gamma_is_that_of_table_9(task: str, kind: str) -> None:
    """0.97, but 0.9 where the released code has it."""
    sac = settings("paper", task, kind=kind).learn.sac
    assert sac.gamma == (0.9 if (task, kind) == ("maniskill/push-chair", "diffusion") else 0.97)
    assert (sac.lr, sac.batch_size, sac.tau) == (1e-4, 1024, 0.01)


@pytest.mark.parametrize("where", ["folder", "object", "function"])
def test_table_8_is_looked_up_from_python_too(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bet = build("bet", 39, 28, BeTConfig(clusters=2, layers=1, heads=2, width=8, gpt_output=8))
    save_policy(bet, tmp_path / "bet", details={})
    policy: Any = {"folder": tmp_path / "bet", "object": bet, "function": lambda obs: obs[..., :28]}[where]
    taken: list[Any] = []
    monkeypatch.setattr(api, "run", lambda config, *_, **__: taken.append(config))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        api.decorate(policy, "adroit/door", preset="paper")
        own = where == "function"
        assert [str(w.message) for w in said] == own * [
            "Table 8 of the paper has no numbers for adroit/door and a base policy of your own: "
            "taking bound 0.1 and horizon 100,000."
        ]
    assert (taken[0].learn.bound, taken[0].learn.horizon) == ((0.1, 100_000) if own else (0.3, 100_000))


@pytest.mark.parametrize("options", [[], ["--bound", "0.2", "--horizon", "5000"]])
def test_the_command_line_says_it_too(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise UserError("stopped")

    monkeypatch.setattr(api, "run", stopped)
    save_policy(build("mlp", 39, 28, MLPConfig(width=4, depth=1)), tmp_path / "mlp", details={})
    known = ["--task", "adroit/door", "--policy", str(tmp_path / "mlp"), "--out", str(tmp_path / "run")]
    assert main(["refine", "--preset", "paper", *known, *options]) == 2
    shown = capsys.readouterr().err
    assert "stopped" in shown
    assert ("Warning: Table 8 of the paper" in shown) == (not options)


def test_what_table_8_does_not_give_is_said() -> None:
    assert unlisted("paper", settings("paper", "adroit/door", kind="bet"), "bet") is None
    assert unlisted("quick", settings("quick", "adroit/door", kind="mlp"), "mlp") is None
    half = unlisted("paper", settings("paper", "adroit/door", kind="mlp", bound=0.2), "mlp")
    assert half == "Table 8 of the paper has no numbers for adroit/door and a base policy mlp: taking horizon 100,000."
    door = unlisted("paper", settings("paper", "adroit/door", kind="diffusion"), "diffusion")
    assert door is not None
    assert door.endswith("base policy diffusion: taking bound 0.1 and horizon 400,000.")
    given = settings("paper", "adroit/door", kind="mlp", bound=0.2, horizon=5_000)
    assert unlisted("paper", given, "mlp") is None
    assert unlisted("paper", settings("paper", "adroit/door", kind="mlp", method="residual-rl"), "mlp") is None


@pytest.mark.parametrize(
    ("task", "kind", "horizon", "total"),
    [
        ("maniskill/stack-cube", "bet", 1_000_000, 3_000_000),
        ("maniskill/peg-insertion-side", "bet", 8_000_000, 10_000_000),
        ("maniskill/push-chair", "bet", 4_000_000, 6_000_000),
        ("maniskill/peg-insertion-side", "diffusion", 4 * 30_000, 4 * 4_000_000),
        ("maniskill/push-chair", "diffusion", 4 * 300_000, 4 * 2_000_000),
        ("adroit/relocate", "diffusion", 4 * 300_000, 4 * 3_000_000),
    ],
)
def test_horizon_and_budget_are_those_of_the_released_commands(task: str, kind: str, horizon: int, total: int) -> None:
    """Environment steps, while the released code counts decisions of 4 steps for a Diffusion Policy."""
    config = settings("paper", task, kind=kind)
    assert (config.learn.horizon, config.train.total_steps) == (horizon, total)  # pyright: ignore
    per_decision = 4 if kind == "diffusion" else 1
    train, as_written = config.train, TrainConfig()
    for name in ("warmup_steps", "steps_per_round", "eval_every", "save_every"):
        assert getattr(train, name) == per_decision * getattr(as_written, name)
    assert train.updates_per_step * train.steps_per_round == 16
    assert config.replay_capacity == (total // 4 if kind == "diffusion" else None)


@pytest.mark.parametrize(("task", "kind"), sorted(TABLE_8))
def test_epsilon_comes_to_1_within_the_budget(task: str, kind: str) -> None:
    config = settings("paper", task, kind=kind)
    assert config.learn.horizon < config.train.total_steps  # pyright: ignore
