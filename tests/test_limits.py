"""Numbers that cannot be meant are refused from Python as from the command line, before anything is spent on them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from policy_decorator import decorate, policy_decorator
from policy_decorator.errors import UserError
from policy_decorator.experiments.demo import DemoConfig, demo
from policy_decorator.limits import LARGEST_BOUND, check_numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": -1}, "horizon must be at least 0, got -1"),
        ({"bound": -0.3}, "bound must be above 0, got -0.3"),
        ({"bound": 0.0}, "bound must be above 0"),
        ({"bound": float("nan")}, "bound must be above 0"),
        ({"bound": "atuo"}, "bound must be above 0, got atuo"),
        ({"bound": 2.1}, "bound must be at most 2.0, got 2.1"),
        ({"bound": [0.1, 0.2]}, "bound must be above 0, got .0.1"),
        ({"total_steps": 300.5}, "total_steps must be a whole number, got 300.5"),
        ({"total_steps": 3e3}, "total_steps 3000 must be more"),
        ({"total_steps": -5}, "total_steps must be at least 1, got -5"),
        ({"total_steps": 5_000}, "total_steps 5000 must be more than warmup_steps 5000"),
    ],
)
def test_decorate_refuses_numbers_that_cannot_be_meant(
    changes: dict[str, Any], message: str, steady: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        decorate(steady, "toy/reach", out=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_the_command_line_writes_names_its_own_way(make_config: Any) -> None:
    cfg = make_config()
    with pytest.raises(UserError, match="--eval-every must be at least 1"):
        check_numbers(
            replace(cfg, train=replace(cfg.train, eval_every=0)), spelled=lambda name: f"--{name.replace('_', '-')}"
        )


def test_the_largest_bound_reaches_every_action(make_config: Any) -> None:
    cfg = make_config()
    check_numbers(replace(cfg, learn=replace(cfg.learn, bound=LARGEST_BOUND)))
    check_numbers(replace(cfg, learn=replace(cfg.learn, bound="auto", horizon="auto")))


def test_a_decorator_without_its_task_says_so() -> None:
    with pytest.raises(UserError, match="needs the name of the task"):

        @policy_decorator  # pyright: ignore[reportArgumentType]
        def act(obs: Any) -> Any:
            return obs


def test_the_demo_looks_first_whether_it_can_write(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        demo(DemoConfig(out=tmp_path))
    with pytest.raises(UserError, match="total_steps 10 must be more than"):
        demo(DemoConfig(out=tmp_path / "new", total_steps=10))
