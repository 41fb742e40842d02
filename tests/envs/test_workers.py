"""Simulators in processes of their own: what they are started with, and what they run."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from policy_decorator.envs.toy import TASKS, ReachEnv
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.envs.workers import why_not_elsewhere


class Told(gym.Wrapper[Any, Any, Any, Any]):
    """Observes an environment variable of its process, its number, and what is drawn there without a seed."""

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = super().reset(**options)
        return np.array([float(os.environ["TOLD"]), os.getpid(), np.random.uniform(), 0], np.float32), info  # noqa: NPY002


def _told(mode: Any) -> Told:
    return Told(TASKS["toy/reach-gym"].make_env(mode))


def test_workers_have_the_variables_of_now_and_draw_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the process that they are forked from was started with."""
    task, seen = replace(TASKS["toy/reach-gym"], make_env=_told), []
    for value in (1.0, 2.0):
        monkeypatch.setenv("TOLD", str(value))
        envs = SimulatorVector(task, 2, workers=2)
        seen += envs.reset(0)[:, -1].tolist()
        envs.close()
    variables, processes, drawn, _ = zip(*seen, strict=True)
    assert variables == (1.0, 1.0, 2.0, 2.0)
    assert len(set(processes) - {os.getpid()}) == len(set(drawn)) == 4


PROGRAM = """
from dataclasses import replace
from policy_decorator.envs.toy import TASKS
from policy_decorator.envs.vector import SimulatorVector

def own(mode):
    return TASKS["toy/reach-gym"].make_env(mode)

print("once")
{guard}SimulatorVector(replace(TASKS["toy/reach-gym"]{task}), 1, workers=1).reset(0)
"""
MAIN = 'if __name__ == "__main__": '


@pytest.mark.parametrize(
    ("guard", "task", "runs"), [("", "", 1), (MAIN, ", make_env=own", 2), ("", ", make_env=own", 0)]
)
def test_a_program_needs_a_guard_for_environments_of_its_own_only(
    guard: str, task: str, runs: int, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(guard=guard, task=task))
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120, check=False)
    if runs:
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines().count("once") == runs
    else:
        assert done.returncode != 0
        assert MAIN.strip() in done.stderr


def test_a_program_that_is_no_file_simulates_in_its_own_process(tmp_path: Path) -> None:
    """A notebook's cells: no other process can import what they define."""
    program = PROGRAM.format(guard="", task=", make_env=own")
    done = subprocess.run(
        [sys.executable], input=program, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("once") == 1
    assert "in this process" in done.stderr


def test_makers_that_cannot_be_sent_are_told_apart() -> None:
    assert why_not_elsewhere([ReachEnv]) is None
    assert "cannot be said" in str(why_not_elsewhere([lambda: ReachEnv()]))
