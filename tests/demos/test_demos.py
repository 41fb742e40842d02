"""Demonstrations: the form in memory and on disk, what is refused, and recording in a tiny environment."""

import errno
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from policy_decorator.demos.dataset import Demonstrations, check, joined
from policy_decorator.demos.episode import Episode, gather
from policy_decorator.demos.record import record, record_expert, record_policy
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

SPEED = 0.25


class Point(gym.Env[np.ndarray, np.ndarray]):
    """A point on the plane; success within 0.2 of the origin. Seeds divisible by three start out of reach."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(0.5, 1.0, 2) + (100 if seed is not None and seed % 3 == 0 else 0)
        return self.place.copy(), {}

    def step(self, action: np.ndarray) -> Any:
        assert np.abs(action).max() <= 1
        self.place = self.place + SPEED * action
        success = bool(np.linalg.norm(self.place) < 0.2)
        return self.place.copy(), 0.0, False, False, {"success": success}


def homing(obs: np.ndarray) -> np.ndarray:
    return np.clip(-obs / SPEED, -0.5, 0.5)


POINT = Task(
    name="point",
    obs_size=2,
    action_size=2,
    max_steps=20,
    control_hz=10,
    success="near the origin",
    demos="Walk there.",
    make_env=lambda mode: Point(),
    make_expert=lambda: homing,
)


def some(lengths: tuple[int, ...] = (3, 1, 4)) -> Demonstrations:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(rng.normal(size=(n, 2)), rng.uniform(-1, 1, (n, 2)), np.arange(n) == 2, seed=7 + n) for n in lengths
    ]
    return gather("point", episodes, "made up", {"noise": 0.5})


def test_episodes_can_be_told_apart() -> None:
    demos = some()
    assert demos.episodes == 3
    np.testing.assert_array_equal(demos.starts, [0, 3, 4])
    np.testing.assert_array_equal(demos.episode_success, [True, False, True])
    assert [len(obs) for obs, _ in demos.split()] == [3, 1, 4]
    np.testing.assert_array_equal(list(demos.split())[2][1], demos.actions[4:8])
    kept = demos.successful()
    np.testing.assert_array_equal(kept.observations, np.concatenate([demos.observations[:3], demos.observations[4:]]))
    np.testing.assert_array_equal(kept.seeds, [10, 11])
    assert demos.first(2).lengths.tolist() == [3, 1]
    about = demos.describe()
    assert (about["episodes"], about["steps"], about["source"]) == (3, 8, "made up")
    assert about["mean_length"] == pytest.approx(8 / 3)
    assert about["success_rate"] == pytest.approx(2 / 3)
    assert about["action_range"] == [demos.actions.min(), demos.actions.max()]
    with pytest.raises(UserError, match="Asked for 4"):
        demos.first(4)


def test_nobody_succeeded() -> None:
    none = replace(some(), success=np.zeros(8, bool)).successful()
    assert none.episodes == 0
    assert none.describe()["success_rate"] is None
    with pytest.raises(UserError, match=r"no demonstrations of point.*Walk there"):
        check(none, POINT)


def test_gather_clips_and_counts() -> None:
    actions = np.array([[1.5, 0.2], [-3.0, 1.0]])
    demos = gather("point", [Episode(np.zeros((2, 2)), actions, np.zeros(2))], "x", {"clipped_entries": 4})
    np.testing.assert_array_equal(demos.actions, np.float32([[1, 0.2], [-1, 1]]))
    assert demos.details["clipped_entries"] == 6
    with pytest.raises(UserError, match="no episodes"):
        gather("point", [], "x", {})


def test_saved_and_loaded_are_the_same(tmp_path: Path) -> None:
    demos = some()
    demos.save(tmp_path / "new" / "demos.h5")
    again = Demonstrations.load(tmp_path / "new" / "demos.h5")
    for name in ("observations", "actions", "success", "lengths", "seeds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(demos, name))
        assert getattr(again, name).dtype == getattr(demos, name).dtype
    assert (again.task, again.source, again.details) == (demos.task, demos.source, demos.details)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["demos.h5"]


@pytest.mark.parametrize("full", ["file size limit", "no space"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, full: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demos.h5"
    some().save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if full == "no space":

        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write that really fails
    try:
        with pytest.raises(UserError, match="disk is full"):
            some((3, 3, 3)).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file where a folder is needed"):
        some().save(tmp_path / "file" / "demos.h5")


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "demos.h5"
    with pytest.raises(UserError, match="There are no demonstrations"):
        Demonstrations.load(path)
    path.write_text("not HDF5 at all")
    with pytest.raises(UserError, match="cannot be read"):
        Demonstrations.load(path)
    some().save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="cannot be read"):
        Demonstrations.load(path)
    for attribute, value, message in [
        ("format", "robomimic", "format 'robomimic'"),
        ("version", 99, "format version 99"),
        ("details", "{", "damaged"),
    ]:
        some().save(path)
        with h5py.File(path, "a") as file:
            file.attrs[attribute] = value
        with pytest.raises(UserError, match=message):
            Demonstrations.load(path)
    for array in ("seeds", "success"):
        some().save(path)
        with h5py.File(path, "a") as file:
            del file[array]
        with pytest.raises(UserError, match=f"has no {array}"):
            Demonstrations.load(path)
    some().save(path)
    with h5py.File(path, "a") as file:
        file["lengths"][0] = 2
    with pytest.raises(UserError, match="do not fit together"):
        Demonstrations.load(path)


def test_joined_episodes_lie_one_after_the_other(tmp_path: Path) -> None:
    one, two = some((3, 1)), replace(some((2,)), source="elsewhere", details={"noise": 0.5})
    both = joined([one, two])
    assert both.lengths.tolist() == [3, 1, 2]
    for name in ("observations", "actions", "success", "seeds"):
        assert np.array_equal(getattr(both, name), np.concatenate([getattr(one, name), getattr(two, name)]))
    assert both.source == f"{one.source} and elsewhere"
    assert [part["episodes"] for part in both.details["joined"]] == [2, 1]
    assert both.details["joined"][1]["details"] == {"noise": 0.5}
    both.save(tmp_path / "both.h5")
    assert Demonstrations.load(tmp_path / "both.h5").details == both.details
    assert joined([one]) is one


def test_joined_with_pictures() -> None:
    one = some((2,))
    rgb = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)
    one = replace(one, pictures={"rgb": rgb})
    assert np.array_equal(joined([one, one]).pictures["rgb"], np.concatenate([rgb, rgb]))


def test_what_does_not_belong_together_is_not_joined() -> None:
    one = some((3, 1))
    with pytest.raises(UserError, match="of one task"):
        joined([one, replace(one, task="another")])
    with pytest.raises(UserError, match="cannot be joined"):
        joined([one, replace(one, observations=one.observations[:, :-1])])
    rgb = np.zeros((4, 3, 2, 2), np.uint8)
    with pytest.raises(UserError, match="cannot be joined"):
        joined([one, replace(one, pictures={"rgb": rgb})])
    with pytest.raises(UserError, match="no demonstrations"):
        joined([])


def test_check_refuses_what_cannot_be_learned_from() -> None:
    demos = some()
    check(demos, POINT)
    with pytest.raises(UserError, match="demonstrations of 'point', not of 'door'"):
        check(demos, replace(POINT, name="door"))
    with pytest.raises(UserError, match="2 observation columns, but point has 5"):
        check(demos, replace(POINT, obs_size=5))
    with pytest.raises(UserError, match="2 action columns, but point has 1"):
        check(demos, replace(POINT, action_size=1))
    with pytest.raises(UserError, match=r"Episode 1 .* no steps"):
        check(some((3, 0, 4)), POINT)
    for array, bad in (("observations", np.nan), ("actions", -np.inf)):
        broken = getattr(demos, array).copy()
        broken[4, 1] = bad
        with pytest.raises(UserError, match=rf"{array[:-1]} entries .* episode 2, step 0, column 1"):
            check(replace(demos, **{array: broken}), POINT)
    almost = demos.actions.copy()
    almost[0, 0] = 1.00005
    check(replace(demos, actions=almost), POINT)
    almost[0, 0] = 1.01
    with pytest.raises(UserError, match=r"reach 1\.01.*[Cc]lip"):
        check(replace(demos, actions=almost), POINT)


def test_expert_episodes_follow_the_environment() -> None:
    seen: list[tuple[int, int]] = []
    demos = record_expert(POINT, 3, seed=1, progress=lambda kept, wanted: seen.append((kept, wanted)))
    check(demos, POINT)
    np.testing.assert_array_equal(demos.seeds, [1, 2, 4])  # seed 3 cannot be solved
    assert (demos.details["attempts"], demos.details["dropped"]) == (4, 1)
    assert seen == [(1, 3), (2, 3), (2, 3), (3, 3)]
    ends = demos.starts + demos.lengths - 1
    assert demos.success.sum() == 3
    assert demos.success[ends].all()
    for (obs, actions), seed in zip(demos.split(), demos.seeds, strict=True):
        place = np.random.default_rng(seed).uniform(0.5, 1.0, 2)  # the stream gymnasium seeds
        np.testing.assert_allclose(obs[0], place, rtol=1e-6)
        np.testing.assert_allclose(np.diff(obs, axis=0), SPEED * actions[:-1], atol=1e-6)
        assert np.linalg.norm(obs, axis=1).min() >= 0.2 > np.linalg.norm(obs[-1] + SPEED * actions[-1])


def test_failures_are_kept_on_request() -> None:
    demos = record_expert(POINT, 2, seed=3, only_successes=False)
    np.testing.assert_array_equal(demos.episode_success, [False, True])
    assert demos.lengths[0] == POINT.max_steps
    assert demos.details["dropped"] == 0


def test_noise_is_executed_and_reproducible() -> None:
    def far(obs: np.ndarray) -> np.ndarray:
        return np.array([0.9, 2.0])

    endless = replace(POINT, max_steps=1000)
    options: dict[str, Any] = {"seed": 5, "noise": 0.3, "only_successes": False}
    demos = record(endless, lambda: far, 2, **options)
    noise = demos.actions - np.array([0.9, 1.0])
    assert demos.actions.max() == 1.0
    # Half a normal distribution: of column 1, which was clipped to 1 before the noise, about half is cut again.
    assert 0.45 < (noise[:, 1] == 0).mean() < 0.55
    below = noise[:, 1][noise[:, 1] < 0]
    assert np.sqrt((below**2).mean()) == pytest.approx(0.3, rel=0.1)
    assert demos.details["clipped_entries"] == 2000 + (demos.actions[:, 0] == 1).sum()
    np.testing.assert_allclose(np.diff(demos.observations[:1000], axis=0), SPEED * demos.actions[:999], atol=1e-4)
    again = record(endless, lambda: far, 2, **options)
    np.testing.assert_array_equal(again.actions, demos.actions)
    np.testing.assert_array_equal(again.observations, demos.observations)
    other = record(endless, lambda: far, 2, **{**options, "seed": 7})
    assert not np.isin(other.actions[:, 0][other.actions[:, 0] < 1], demos.actions[:, 0]).any()
    # Episode 1 of seed 5 and episode 0 of seed 6 are one episode.
    later = record(endless, lambda: far, 1, **{**options, "seed": 6})
    np.testing.assert_array_equal(later.actions, demos.actions[1000:])


def test_recording_refuses() -> None:
    def lazy(obs: np.ndarray) -> np.ndarray:
        return np.zeros(2)

    with pytest.raises(UserError, match=r"Only 0 of the 2 .* in 5 attempts.*max_attempts"):
        record(POINT, lambda: lazy, 2, seed=0, max_attempts=5)
    with pytest.raises(UserError, match=r"no scripted expert. Walk there."):
        record_expert(replace(POINT, make_expert=None), 1, seed=0)
    with pytest.raises(UserError, match="takes 2 finite numbers"):
        record(POINT, lambda: lambda obs: np.zeros(3), 1, seed=0)
    with pytest.raises(UserError, match="takes 2 finite numbers"):
        record(POINT, lambda: lambda obs: np.full(2, np.nan), 1, seed=0)
    with pytest.raises(UserError, match="at least one"):
        record_expert(POINT, 0, seed=0)


class Chunked:
    """Two frames in, three actions out that encode what was seen; keeps the windows it was shown."""

    context = 2

    def __init__(self) -> None:
        self.windows: list[torch.Tensor] = []

    def act(self, window: torch.Tensor) -> torch.Tensor:
        self.windows.append(window)
        scale = torch.tensor([0.1, 0.2, 0.3])[None, :, None]  # (1, Ta, 1)
        return scale + 0.01 * torch.rand(1, 3, 2)  # (1, Ta, Da)


def test_policies_are_shown_windows_and_act_in_chunks() -> None:
    policy = Chunked()
    short = replace(POINT, max_steps=7)
    state = torch.random.get_rng_state()
    demos = record_policy(short, policy, 2, seed=1, only_successes=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    obs = demos.observations.reshape(2, 7, 2)
    windows = torch.cat(policy.windows).numpy()  # (6, To, Do): decisions at steps 0, 3 and 6 of two episodes
    for episode in range(2):
        expected = np.stack([obs[episode, [0, 0]], obs[episode, [2, 3]], obs[episode, [5, 6]]])
        np.testing.assert_allclose(windows[3 * episode : 3 * episode + 3], expected, rtol=1e-6)
    np.testing.assert_array_equal(np.floor(demos.actions[:7, 0] * 10 + 1e-4), [1, 2, 3, 1, 2, 3, 1])
    again = record_policy(short, Chunked(), 2, seed=1, only_successes=False)
    np.testing.assert_array_equal(again.actions, demos.actions)
