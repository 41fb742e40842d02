"""Demonstrations with pictures: in memory, on disk, refused, and played again from demonstrations of the state."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from policy_decorator.cli import main
from policy_decorator.demos import storage
from policy_decorator.demos.dataset import Demonstrations, check
from policy_decorator.demos.episode import Episode, gather
from policy_decorator.demos.record import record_expert, record_policy
from policy_decorator.demos.replayed import with_pictures
from policy_decorator.envs import get_task
from policy_decorator.envs.task import Images, Task
from policy_decorator.envs.toy_pictures import MisledByColour
from policy_decorator.errors import UserError

TOY = get_task("toy/reach:rgb")


def nothing(mode: str | None) -> Any:
    raise AssertionError("no environment is needed here")


SHOWN = Images(("a", "b"), 4, 5, depth=True, state_size=2, make_env=nothing)
SEEN = Task("point:rgbd", 2, 2, 20, 1.0, "", "Walk there.", nothing, shows=SHOWN)


def some(lengths: tuple[int, ...] = (3, 1, 4)) -> Demonstrations:
    """Every picture tells its row."""
    episodes, row = [], 0
    for n in lengths:
        rows = np.arange(row, row + n)
        pictures = {
            "rgb": np.broadcast_to(rows[:, None, None, None], (n, 6, 4, 5)).astype(np.uint8),
            "depth": np.broadcast_to(100 * rows[:, None, None, None], (n, 2, 4, 5)).astype(np.int16),
        }
        state = np.stack([rows, rows], axis=1).astype(np.float32)
        episodes.append(Episode(state, np.zeros((n, 2), np.float32), np.arange(n) == 2, 7 + n, pictures))
        row += n
    return gather("point:rgbd", episodes, "made up", {})


def assert_rows_match(demos: Demonstrations) -> None:
    assert demos.pictures["rgb"].dtype == np.uint8
    assert demos.pictures["depth"].dtype == np.int16
    rows = demos.observations[:, 0].astype(int)
    assert (demos.pictures["rgb"] == rows[:, None, None, None]).all()
    assert (demos.pictures["depth"] == 100 * rows[:, None, None, None]).all()


def test_every_operation_keeps_them() -> None:
    demos = some()
    assert_rows_match(demos)
    assert len(demos.pictures["rgb"]) == 8
    for part, rows in ((demos.first(2), 4), (demos.successful(), 7)):
        assert_rows_match(part)
        assert len(part.pictures["rgb"]) == len(part.pictures["depth"]) == rows
    seen, actions = list(demos.split())[2]
    assert set(seen) == {"state", "rgb", "depth"}
    assert seen["rgb"][:, 0, 0, 0].tolist() == seen["state"][:, 0].tolist() == [4, 5, 6, 7]
    assert len(actions) == 4
    assert demos.describe()["pictures"] == {"rgb": [6, 4, 5], "depth": [2, 4, 5]}
    check(demos, SEEN)


def test_saved_and_loaded_are_the_same(tmp_path: Path) -> None:
    demos, path = some(), tmp_path / "demos.h5"
    demos.save(path)
    again = Demonstrations.load(path)
    assert_rows_match(again)
    np.testing.assert_array_equal(again.pictures["depth"], demos.pictures["depth"])
    with h5py.File(path) as file:
        assert file.attrs["version"] == 2
        assert file["rgb"].chunks == (1, 6, 4, 5)  # pyright: ignore[reportAttributeAccessIssue]
        assert file["rgb"].compression == file["depth"].compression == "gzip"  # pyright: ignore[reportAttributeAccessIssue]
    some((0,)).save(path)  # an episode without steps is refused by check, not by the disk
    assert len(Demonstrations.load(path).pictures["rgb"]) == 0


def test_files_without_pictures_are_as_they_were(tmp_path: Path) -> None:
    replace(some(), pictures={}).save(tmp_path / "demos.h5")
    with h5py.File(tmp_path / "demos.h5") as file:
        assert file.attrs["version"] == 1
        assert sorted(file) == sorted(storage.ARRAYS)
    assert Demonstrations.load(tmp_path / "demos.h5").pictures == {}


def test_pictures_compress(tmp_path: Path) -> None:
    demos = record_expert(TOY.flat or TOY, 3, seed=0)
    seen = with_pictures(demos, TOY)
    seen.save(tmp_path / "demos.h5")
    with h5py.File(tmp_path / "demos.h5") as file:
        stored: Any = file["rgb"]
        assert stored.id.get_storage_size() < 0.2 * seen.pictures["rgb"].nbytes


class FullDisk(storage._Disk):
    """Has room for a few thousand bytes."""

    room = 4000

    def write(self, data: Any, /) -> int:
        self.room -= len(data)
        if self.room < 0:
            self.failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demos.h5"
    some().save(path)
    before = path.read_bytes()
    monkeypatch.setattr(storage, "_Disk", FullDisk)
    with pytest.raises(UserError, match="disk is full"):
        some((9, 9)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


RGB, DEPTH = np.full((8, 6, 4, 5), 9, np.uint8), np.full((8, 2, 4, 5), 900, np.int16)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({"rgb": RGB / 255.0, "depth": DEPTH}, r"rgb is float64, not uint8.*255"),
        ({"rgb": RGB, "depth": (DEPTH / 1000).astype(np.float32)}, r"depth is float32, not int16.*millimetres"),
        ({"rgb": RGB, "depth": DEPTH.astype(np.uint16)}, "depth is uint16"),
        ({"rgb": RGB[:7], "depth": DEPTH}, r"\(7, 6, 4, 5\), but there are 8 steps"),
        ({"rgb": RGB[:, 0], "depth": DEPTH}, "one picture"),
        ({"depth": DEPTH}, "depth without rgb"),
        ({"image": RGB}, "not 'image'"),
        ({}, r"have no depth and no rgb.*pidec demos point:rgbd"),
        ({"rgb": RGB}, "have no depth"),
        ({"rgb": RGB[:, :3], "depth": DEPTH}, r"rgb of these demonstrations is \(3, 4, 5\), point:rgbd shows \(6, 4"),
        ({"rgb": RGB // 9, "depth": DEPTH}, "No entry of rgb is larger than 1"),
        ({"rgb": RGB, "depth": DEPTH // 1000 + 2}, r"depth goes from 2 to 2, which are no mill"),
        ({"rgb": RGB, "depth": -DEPTH}, "depth goes from -900"),
    ],
)
def test_wrong_pictures_are_refused(pictures: dict[str, np.ndarray], message: str) -> None:
    check(replace(some(), pictures={"rgb": RGB, "depth": DEPTH}), SEEN)
    with pytest.raises(UserError, match=message):
        check(replace(some(), pictures=pictures), SEEN)


def test_a_task_of_the_state_shows_none() -> None:
    with pytest.raises(UserError, match="have depth and rgb, which point:rgbd does not show"):
        check(some(), replace(SEEN, shows=None))


def test_episodes_that_show_different_things_do_not_join() -> None:
    a, b = (np.zeros((1, 3, k, k), np.uint8) for k in (2, 3))
    steps = np.zeros((1, 2)), np.zeros((1, 2)), np.zeros(1, bool)
    with pytest.raises(UserError, match="differ in their pictures"):
        gather("point", [Episode(*steps, 0, {"rgb": a}), Episode(*steps, 1, {"rgb": b})], "x", {})
    with pytest.raises(UserError, match="differ in their pictures"):
        gather("point", [Episode(*steps, 0, {"rgb": a}), Episode(*steps, 1)], "x", {})


# ---- recording -----------------------------------------------------------------------------------------------------


def test_played_again_before_the_camera() -> None:
    assert TOY.flat is not None
    flat = record_expert(TOY.flat, 4, seed=5)
    demos = with_pictures(flat, TOY)
    check(demos, TOY)
    np.testing.assert_array_equal(demos.actions, flat.actions)
    np.testing.assert_array_equal(demos.observations, flat.observations[:, :2])
    assert demos.details["not_replayed"] == 0
    at = np.linspace(-1.2, 1.2, 16)
    discs = demos.pictures["rgb"][:, [0, 2]].sum(axis=1).astype(float)  # (N, 16, 16)
    seen = np.stack([(discs.sum(1) * at).sum(1), (discs.sum(2) * at).sum(1)], axis=1) / discs.sum((1, 2))[:, None]
    np.testing.assert_allclose(seen, flat.observations[:, 2:], atol=0.02)  # the goal is to be seen, and only there


def test_what_does_not_succeed_again_is_left_out() -> None:
    assert TOY.flat is not None
    flat = record_expert(TOY.flat, 3, seed=5)
    seeds = flat.seeds.copy()
    seeds[1] += 100  # another layout
    assert with_pictures(replace(flat, seeds=seeds), TOY).details["not_replayed"] == 1
    with pytest.raises(UserError, match="None of these demonstrations succeeds again"):
        with_pictures(replace(flat, seeds=seeds + 200), TOY)
    with pytest.raises(UserError, match="seeds of these demonstrations"):
        with_pictures(replace(flat, seeds=np.full(3, -1)), TOY)
    with pytest.raises(UserError, match="toy/reach shows no pictures"):
        with_pictures(flat, TOY.flat)


def test_a_policy_that_sees_is_recorded_with_what_it_saw() -> None:
    demos = record_policy(TOY, MisledByColour(0.05), 3, seed=2)
    check(demos, TOY)
    again = with_pictures(replace(demos, task="toy/reach", observations=np.zeros((len(demos.actions), 4), np.float32),
                                  pictures={}), TOY)  # fmt: skip
    np.testing.assert_array_equal(again.pictures["rgb"], demos.pictures["rgb"])
    window: Any = TOY.make_native(1).reset(int(demos.seeds[0])) if TOY.make_native else None
    np.testing.assert_array_equal(window["rgb"][0, 0], torch.from_numpy(demos.pictures["rgb"][0]))


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat, one, two = (str(tmp_path / f"{name}.h5") for name in ("flat", "one", "two"))
    assert main(["demos", "toy/reach", "--out", flat, "--episodes", "3", "--quiet"]) == 0
    assert main(["demos", "toy/reach:rgb", "--out", one, "--episodes", "3", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["demos", "toy/reach:rgb", "--out", two, "--from-replay", flat, "--quiet", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["pictures"] == {"rgb": [3, 16, 16]}
    assert (about["task"], about["source"]) == ("toy/reach:rgb", "scripted expert")
    a, b = Demonstrations.load(one), Demonstrations.load(two)
    np.testing.assert_array_equal(a.pictures["rgb"], b.pictures["rgb"])
    assert main(["demos", "toy/reach", "--out", str(tmp_path / "no.h5"), "--from-replay", flat, "--quiet"]) != 0
    assert "shows no pictures" in capsys.readouterr().err
