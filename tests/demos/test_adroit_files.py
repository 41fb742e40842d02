"""Files of others that hold Adroit episodes, in small and in their real layout: D4RL, Minari and DAPG, four tasks."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
from adroit_play import NAMES, expert, make_dense, play, random

from policy_decorator.cli import main
from policy_decorator.demos.d4rl import read_d4rl
from policy_decorator.demos.dapg import read_dapg
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.minari_reader import read_minari
from policy_decorator.envs import TASKS
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

LENGTHS = (150, 20, 40)  # the expert's, and two of chance
DOOR = TASKS["adroit/door"]


class Recorded(NamedTuple):
    task: Task
    starts: list[dict[str, Any]]
    """The simulator's state at the beginning of each episode."""
    episodes: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    """observations (L + 1, Do), actions (L, Da), rewards (L,), success (L,)"""

    def column(self, k: int) -> np.ndarray:
        """Field k of all episodes, end to end, without terminal observations."""
        return np.concatenate([episode[k][: len(episode[1])] for episode in self.episodes])


@pytest.fixture(scope="module", params=NAMES)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    task, env = TASKS[f"adroit/{request.param}"], make_dense(request.param)
    starts, episodes = [], []
    for seed, (act, length) in enumerate(zip((expert(task), random(task), random(task)), LENGTHS, strict=True)):
        env.reset(seed=seed)
        starts.append({k: v for k, v in env.get_env_state().items() if k in env._state_space.spaces})
        done: list[np.ndarray] = []

        def noted(obs: np.ndarray, act: Any = act, done: list[np.ndarray] = done) -> np.ndarray:
            done.append(act(obs))
            return done[-1]

        observations, rewards, success = play(env, seed, noted, length + 1)
        episodes.append((observations, np.stack(done)[:length], rewards[:length], success[:length]))
    env.close()
    assert episodes[0][3].any()
    return Recorded(task, starts, episodes)


def check_against(demos: Demonstrations, recorded: Recorded) -> None:
    assert demos.task == recorded.task.name
    assert demos.lengths.tolist() == list(LENGTHS)
    np.testing.assert_array_equal(demos.observations, recorded.column(0).astype(np.float32))
    np.testing.assert_array_equal(demos.actions, recorded.column(1).clip(-1, 1))
    np.testing.assert_array_equal(demos.success, recorded.column(3))
    assert demos.episode_success.tolist() == [bool(episode[3].any()) for episode in recorded.episodes]
    assert demos.seeds.tolist() == [-1, -1, -1]


def d4rl_arrays(recorded: Recorded) -> dict[str, np.ndarray]:
    """What D4RL's scripts/generation/hand_dapg_demos.py writes."""
    timeouts = np.zeros(sum(LENGTHS), bool)
    timeouts[np.cumsum(LENGTHS) - 1] = True
    rows = np.repeat(range(len(LENGTHS)), LENGTHS)
    return {
        "observations": recorded.column(0).astype(np.float32),
        "actions": recorded.column(1).astype(np.float32),
        "rewards": recorded.column(2).astype(np.float32),
        "terminals": np.zeros(len(timeouts), bool),
        "timeouts": timeouts,
        **{f"infos/{k}": np.stack([recorded.starts[r][k] for r in rows]) for k in recorded.starts[0]},
    }


def write(path: Path, arrays: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip" if np.ndim(array) else None)
        file["metadata/algorithm"] = np.bytes_("DAPG")
    return path


def test_d4rl(recorded: Recorded, tmp_path: Path) -> None:
    path, out = write(tmp_path / "x-human-v1.hdf5", d4rl_arrays(recorded)), tmp_path / "demos.h5"
    demos = read_d4rl(path, recorded.task)
    check_against(demos, recorded)
    assert main(["demos", recorded.task.name, "--from-d4rl", str(path), "--out", str(out)]) == 0
    check_against(Demonstrations.load(out), recorded)
    assert demos.source == "D4RL file x-human-v1.hdf5"
    assert demos.details["success"].startswith("derived: ")
    assert demos.details["cut_off"] == 0


def test_dapg(recorded: Recorded, tmp_path: Path) -> None:
    keys = ("observations", "actions", "rewards")
    entries = [
        {key: array[: len(episode[1])] for key, array in zip(keys, episode, strict=False)} | {"init_state_dict": start}
        for episode, start in zip(recorded.episodes, recorded.starts, strict=True)
    ]
    (tmp_path / "d.pickle").write_bytes(pickle.dumps(entries, protocol=2))
    check_against(read_dapg(tmp_path / "d.pickle", recorded.task), recorded)


def test_minari(recorded: Recorded, tmp_path: Path) -> None:
    """As the D4RL/<task>/*-v2 datasets were made: starts set by options, success also at the reset, drawn seeds."""
    pytest.importorskip("minari")
    import gymnasium as gym
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    folder = tmp_path / "D4RL" / "human-v2" / "data"
    folder.mkdir(parents=True)
    sizes = recorded.task.obs_size, recorded.task.action_size
    obs_space = gym.spaces.Box(-np.inf, np.inf, sizes[:1], np.float64)
    act_space = gym.spaces.Box(-1, 1, sizes[1:], np.float32)
    storage = MinariStorage.new(folder, observation_space=obs_space, action_space=act_space, data_format="hdf5")
    buffers = [
        EpisodeBuffer(
            seed=12345 + k,
            options={"initial_state_dict": start},
            observations=list(observations.astype(np.float64)),
            actions=list(actions.astype(np.float32)),
            rewards=rewards.tolist(),
            terminations=[False] * len(actions),
            truncations=[*[False] * (len(actions) - 1), True],
            infos={"success": [False, *success.tolist()]},
        )
        for k, (start, (observations, actions, rewards, success)) in enumerate(
            zip(recorded.starts, recorded.episodes, strict=True)
        )
    ]
    storage.update_episodes(buffers)
    storage.update_metadata({"dataset_id": "D4RL/human-v2", "minari_version": "0.5.3"})
    demos = read_minari(str(folder), recorded.task)
    check_against(demos, recorded)
    assert demos.details["success"] == 'infos["success"]'


# ---- files of D4RL that are not what they should be ----------------------------------------------------------------


def small(rows: int = 6, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(rows, 39)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 28)).astype(np.float32),
        "rewards": np.zeros(rows, np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 3 == 2,
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def test_episodes_end_at_timeouts_and_terminals_and_the_file_may_break_off(tmp_path: Path) -> None:
    terminals = np.zeros(8, bool)
    terminals[3] = True
    demos = read_d4rl(write(tmp_path / "a.hdf5", small(8, terminals=terminals)), DOOR)
    assert demos.lengths.tolist() == [3, 1, 2, 2]
    assert demos.details["cut_off"] == 1
    whole = read_d4rl(write(tmp_path / "b.hdf5", small(terminals=None)), DOOR)
    assert whole.lengths.tolist() == [3, 3]
    only = read_d4rl(write(tmp_path / "c.hdf5", small(terminals=np.arange(6) == 5, timeouts=None)), DOOR)
    assert only.lengths.tolist() == [6]


def test_actions_are_clipped_and_counted(tmp_path: Path) -> None:
    wide = small()["actions"] * 0
    wide[2, 5], wide[4, 0] = 1.2, -7
    demos = read_d4rl(write(tmp_path / "a.hdf5", small(actions=wide)), DOOR)
    assert (demos.actions[2, 5], demos.actions[4, 0]) == (1, -1)
    assert demos.details["clipped_entries"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "it has no rewards, but actions"),
        ({"terminals": None, "timeouts": None}, "it has no timeouts"),
        ({"timeouts": np.zeros(6, bool)}, "no step ends an episode"),
        ({"actions": np.zeros(6)}, r"actions of .* is float64 \(6,\), not numbers of 2 dimensions"),
        ({"observations": None, "observations/state": np.zeros((6, 39))}, "observations of .* is a group"),
        ({"actions": np.array([[b"a"]] * 6)}, r"actions of .* is \|S1"),
        ({"rewards": np.zeros(5)}, "rewards of .* has 5 rows, its observations have 6"),
        ({"observations": np.full((6, 39), np.nan)}, "not finite"),
        ({"observations": np.zeros((6, 45))}, "45 observation columns, but adroit/door has 39"),
        ({"actions": np.zeros((6, 30))}, "30 action columns, but adroit/door has 28"),
    ],
)
def test_d4rl_says_what_is_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_d4rl(write(tmp_path / "a.hdf5", small(**changes)), DOOR)


def test_d4rl_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no D4RL file at .* Download"):
        read_d4rl(tmp_path / "a.hdf5", DOOR)
    path = write(tmp_path / "a.hdf5", small(3000))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot be read as HDF5 .* Download it again"):
        read_d4rl(path, DOOR)
    broken = bytearray(whole)
    broken[len(whole) // 3 : len(whole) // 2] = bytes(len(whole) // 2 - len(whole) // 3)  # within the compressed rows
    path.write_bytes(broken)
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        read_d4rl(path, DOOR)
    path.write_text("observations")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        read_d4rl(path, DOOR)
