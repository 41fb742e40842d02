"""Motion planning by ManiSkill, and its trajectory files, made here by its own tools."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from policy_decorator.cli import main
from policy_decorator.demos import motion_planning
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.maniskill_h5 import read_maniskill
from policy_decorator.demos.motion_planning import record_planned
from policy_decorator.envs import get_task
from policy_decorator.errors import UserError

STACK = get_task("maniskill/stack-cube")


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    pytest.importorskip("mani_skill", reason="mani_skill is not installed")
    if int(np.__version__.split(".")[0]) >= 2:
        pytest.skip("ManiSkill's motion planner crashes with numpy 2")
    try:
        STACK.make_env(None).close()
    except UserError:
        pytest.skip("there is no Vulkan driver (make sim-drivers)")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plans for StackCube as actions of the gripper: what a user of ManiSkill has."""
    plans, solved = motion_planning._plan(STACK, range(2), tmp_path_factory.mktemp("plans"))
    assert solved == 2
    return motion_planning._convert(STACK, plans)


@pytest.fixture
def copied(converted: Path, tmp_path: Path) -> Path:
    for suffix in (".h5", ".json"):
        shutil.copy(converted.with_suffix(suffix), tmp_path / f"copy{suffix}")
    return tmp_path / "copy.h5"


def _describe(path: Path, **env_info: Any) -> None:
    beside = path.with_suffix(".json")
    about = json.loads(beside.read_text())
    about["env_info"]["env_kwargs"] |= env_info.pop("env_kwargs", {})
    about["env_info"] |= env_info
    beside.write_text(json.dumps(about))


def _solved_again(demos: Demonstrations) -> int:
    env, solved = get_task(demos.task).make_env(None), 0
    for seed, (observations, actions) in zip(demos.seeds, demos.split(), strict=True):
        obs, _ = env.reset(seed=int(seed))
        for expected, action in zip(observations, actions, strict=True):
            np.testing.assert_array_equal(obs, expected)
            obs, _, _, _, info = env.step(action)
        solved += info["success"]
    env.close()
    return solved


def test_a_file_of_maniskill_is_read_up_to_the_first_success(converted: Path) -> None:
    demos = read_maniskill(converted, STACK)
    assert demos.seeds.tolist() == [0, 1]
    assert demos.obs_size == 48
    assert demos.action_size == 4
    ends = demos.starts + demos.lengths - 1
    assert np.flatnonzero(demos.success).tolist() == ends.tolist()
    assert _solved_again(demos) == 2


@pytest.mark.slow
def test_plans_succeed_again_and_do_not_depend_on_processes() -> None:
    told: list[tuple[int, int]] = []
    demos = record_planned(STACK, 2, seed=10, progress=lambda done, of: told.append((done, of)))
    assert demos.episodes == 2
    assert demos.episode_success.all()
    assert demos.seeds.tolist() == sorted(demos.seeds)
    assert demos.seeds[0] >= 10
    assert told[-1] == (2, 2)
    assert _solved_again(demos) == 2
    assert demos.details["attempts"] >= 2
    again = record_planned(STACK, 2, seed=10, processes=2)
    np.testing.assert_array_equal(again.actions, demos.actions)


def test_what_did_not_succeed_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    episode = motion_planning.Episode(np.zeros((3, 48)), np.zeros((3, 4)), np.array([False, False, True]), 0)
    batch = motion_planning.Planned(seeds=10, solved=7, converted=5, episodes=[episode] * 4)
    monkeypatch.setattr(motion_planning, "plan", lambda name, seeds: batch)
    demos = record_planned(STACK, 6, seed=0, max_attempts=12)
    assert demos.episodes == 6
    counts = {"attempts": 20, "plans_failed": 6, "conversions_failed": 4, "executions_failed": 2}
    assert counts.items() <= demos.details.items()
    with pytest.raises(UserError, match="Only 4 of 6 demonstrations of maniskill/stack-cube succeeded in 6"):
        record_planned(STACK, 6, seed=0, max_attempts=6)


def test_what_cannot_be_planned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no motion planning for adroit/door"):
        record_planned(get_task("adroit/door"), 1, seed=0)
    with pytest.raises(UserError, match="at least one"):
        record_planned(STACK, 0, seed=0)
    monkeypatch.setattr(motion_planning.np, "__version__", "2.1.0")
    with pytest.raises(UserError, match="numpy<2"):
        record_planned(STACK, 1, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_id": "PickCube-v1"}, "is of PickCube-v1, not of StackCube-v1"),
        ({"env_kwargs": {"control_mode": "pd_joint_pos"}}, "replay_trajectory --traj-path"),
        ({"env_kwargs": {"obs_mode": "rgbd"}}, "observations 'rgbd'"),
    ],
)
def test_a_file_of_another_kind_is_refused(copied: Path, change: dict[str, Any], message: str) -> None:
    _describe(copied, **change)
    with pytest.raises(UserError, match=message):
        read_maniskill(copied, STACK)


def test_a_damaged_file_is_refused(copied: Path) -> None:
    with h5py.File(copied, "a") as file:
        del file["traj_1/obs"]
    with pytest.raises(UserError, match=r"/traj_1 .* has no array obs"):
        read_maniskill(copied, STACK)
    with h5py.File(copied, "a") as file:
        file["traj_1/obs"] = np.zeros((5, 48))
    with pytest.raises(UserError, match="5 observations"):
        read_maniskill(copied, STACK)
    with h5py.File(copied, "a") as file:
        del file["traj_1"]
    with pytest.raises(UserError, match="lacks episode 1"):
        read_maniskill(copied, STACK)
    copied.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        read_maniskill(copied, STACK)
    copied.with_suffix(".json").write_text("{}")
    with pytest.raises(UserError, match="does not describe"):
        read_maniskill(copied, STACK)
    copied.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"There is no .*copy\.json"):
        read_maniskill(copied, STACK)


def test_other_tasks_refuse_it(converted: Path) -> None:
    with pytest.raises(UserError, match="not of PegInsertionSide-v1"):
        read_maniskill(converted, get_task("maniskill/peg-insertion-side"))
    with pytest.raises(UserError, match="Unknown ManiSkill task 'adroit/door'"):
        read_maniskill(converted, get_task("adroit/door"))
    with pytest.raises(UserError, match="observation columns"):
        read_maniskill(converted, replace(STACK, obs_size=50))


def test_the_command_reads_it(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demos.h5"
    assert main(["demos", STACK.name, "--from-maniskill", str(converted), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2
    assert Demonstrations.load(out).episodes == 2


def test_noise_is_refused_where_plans_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demos", STACK.name, "--out", str(tmp_path / "x.h5"), "--noise", "0.1"]
    assert main(command) != 0
    assert "not for motion planning" in capsys.readouterr().err
