"""Other people's demonstrations and experts: DAPG pickles, expert weights, Minari datasets."""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_decorator.demos.dapg import read_dapg
from policy_decorator.demos.expert_npz import read_expert_npz
from policy_decorator.demos.minari_reader import read_minari
from policy_decorator.demos.record import record
from policy_decorator.envs.task import Task
from policy_decorator.errors import MissingExtra, UserError

ADROIT = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "adroit"
needs_data = pytest.mark.skipif(not ADROIT.is_dir(), reason="the Adroit files of ../shared/data are not here")


def make_door(mode: str | None) -> gym.Env[Any, Any]:
    pytest.importorskip("gymnasium_robotics")
    return gym.make("AdroitHandDoor-v1", render_mode=mode)


def task(obs_size: int, action_size: int, name: str = "adroit-door") -> Task:
    return Task(name, obs_size, action_size, 200, 100, "open", "Download them.", make_env=make_door)


DOOR = task(39, 28)


@needs_data
def test_the_published_door_file() -> None:
    demos = read_dapg(ADROIT / "door-v0_demos.pickle", DOOR)
    assert (demos.episodes, len(demos.actions)) == (25, 6729)
    assert (demos.lengths.min(), demos.lengths.max()) == (223, 300)
    assert demos.episode_success.sum() == 7
    assert demos.details["clipped_entries"] == 10595  # 5.6 % of 6729 x 28, counted in the file
    assert np.abs(demos.actions).max() == 1.0
    hinge = demos.observations[:, 28]
    within = np.setdiff1d(np.arange(6729), demos.starts + demos.lengths - 1)
    np.testing.assert_array_equal(demos.success[within], hinge[within + 1] >= 1.35)


@needs_data
def test_last_steps_of_the_door_file_agree_with_its_rewards() -> None:
    demos = read_dapg(ADROIT / "door-v0_demos.pickle", DOOR)
    ends = demos.starts + demos.lengths - 1
    near = np.abs(demos.observations[ends, 28] - 1.35) > 0.02  # far enough for one step not to matter
    np.testing.assert_array_equal(demos.success[ends][near], (demos.observations[ends, 28] > 1.35)[near])
    assert near.sum() >= 20


@needs_data
def test_door_hinge_column_and_expert_in_the_simulator() -> None:
    demos = record(DOOR, lambda: read_expert_npz(ADROIT / "door_expert.npz"), 2, seed=0, max_attempts=2)
    assert demos.episode_success.all()
    assert 30 < demos.lengths.mean() < 90  # about 52 steps were measured when the weights were published here
    assert not (demos.observations[:, 28] >= 1.35).any()
    assert (demos.observations[demos.starts + demos.lengths - 1, 28] > 1.2).all()


def demo(length: int = 4, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    entry = {
        "observations": rng.normal(size=(length, 3)),
        "actions": rng.uniform(-1, 1, (length, 2)),
        "rewards": np.zeros(length),
        "init_state_dict": {"qpos": np.zeros(3), "scalar": np.float64(1.0)},
    }
    return {**entry, **changes}


def write(path: Path, content: Any, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 3, 5])
@pytest.mark.parametrize("renamed", [False, True])
def test_arrays_of_every_protocol_and_numpy(tmp_path: Path, protocol: int, renamed: bool) -> None:
    path = write(tmp_path / "d.pickle", [demo(4), demo(2)], protocol)
    if renamed and protocol < 4:  # the other numpy's module name; later protocols carry lengths
        here, there = (b"numpy.core", b"numpy._core") if np.__version__ < "2" else (b"numpy._core", b"numpy.core")
        path.write_bytes(path.read_bytes().replace(here, there))
        assert there in path.read_bytes()
    demos = read_dapg(path, task(3, 2))
    np.testing.assert_array_equal(demos.observations[:4], demo(4)["observations"].astype(np.float32))
    np.testing.assert_array_equal(demos.actions[4:], demo(2)["actions"].astype(np.float32))
    assert demos.details["success"] == "unknown"
    assert not demos.success.any()


class Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.made = (call, arguments)

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cannot_run_anything(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    path = write(tmp_path / "evil.pickle", [demo(), Evil(os.system, f"touch {mark}")], protocol)
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the attack works where it is not refused
    mark.unlink()
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system"):
        read_dapg(path, task(3, 2))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["builtins eval", "builtins getattr", "numpy load", "numpy core", "copyreg _x"])
def test_only_the_names_of_arrays_are_admitted(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.pickle"
    path.write_bytes(b"c" + name.replace(" ", "\n").encode() + b"\n.")  # GLOBAL, STOP
    with pytest.raises(UserError, match=f"asks for {name.replace(' ', '[.]')}"):
        read_dapg(path, task(3, 2))


def test_no_other_codec_than_that_of_raw_bytes(tmp_path: Path) -> None:
    path = tmp_path / "evil.pickle"
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    assert pickle.loads(path.read_bytes()) == "nop"
    with pytest.raises(UserError, match="asks for codec 'rot13'"):
        read_dapg(path, task(3, 2))


def test_dapg_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "d.pickle"
    small = task(3, 2)
    with pytest.raises(UserError, match="no DAPG file at"):
        read_dapg(path, small)
    path.write_bytes(b"\x80\x02]q")
    with pytest.raises(UserError, match="not a readable pickle"):
        read_dapg(path, small)
    for content, message in [
        ({}, "holds a dict"),
        ([], "no episodes"),
        ([1], "is a int"),
        ([demo(), {"actions": np.zeros((2, 2))}], "observations of demonstration 1 .* NoneType"),
        ([demo(actions=np.zeros(4))], r"actions .* float64 \(4,\)"),
        ([demo(observations=np.zeros((5, 3)))], "has 5 rows for 4 actions"),
        ([demo(actions=np.array([[None, 1]] * 4))], "is object"),
        ([demo(), demo(observations=np.zeros((4, 9)))], "differ in shape"),
        ([demo(observations=np.full((4, 3), np.nan))], "not finite"),
    ]:
        with pytest.raises(UserError, match=message):
            read_dapg(write(path, content, 2), small)
    with pytest.raises(UserError, match="3 observation columns, but adroit-door has 39"):
        read_dapg(write(path, [demo()], 2), DOOR)


def test_expert_is_the_network_it_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    )
    shift, scale, out = np.array([1.0, 2, 3]), np.array([0.5, 1, 2]), np.array([3.0, 0.5])
    arrays = {"in_shift": shift, "in_scale": scale, "out_shift": out - 2, "out_scale": out}
    for index, layer in enumerate((net[0], net[2], net[4])):
        assert isinstance(layer, torch.nn.Linear)
        arrays |= {f"w{index}": layer.weight.detach().numpy(), f"b{index}": layer.bias.detach().numpy()}
    np.savez(tmp_path / "expert.npz", **arrays)
    act = read_expert_npz(tmp_path / "expert.npz")
    for obs in np.random.default_rng(0).normal(size=(20, 3)) * 3:
        y = net(torch.as_tensor((obs - shift) / scale, dtype=torch.float32)).detach().numpy()
        np.testing.assert_allclose(act(obs), np.clip(out * y + out - 2, -1, 1), atol=1e-5)
        assert act(obs).dtype == np.float32
    del arrays["b2"]
    np.savez(tmp_path / "expert.npz", **arrays)
    with pytest.raises(UserError, match="b2 is not a file"):
        read_expert_npz(tmp_path / "expert.npz")
    np.savez(tmp_path / "expert.npz", **{**arrays, "b2": np.array([None])})
    with pytest.raises(UserError, match="allow_pickle"):
        read_expert_npz(tmp_path / "expert.npz")
    (tmp_path / "expert.npz").write_text("no")
    with pytest.raises(UserError, match="not an expert"):
        read_expert_npz(tmp_path / "expert.npz")
    with pytest.raises(UserError, match="no expert at"):
        read_expert_npz(tmp_path / "nothing.npz")


BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
UNIT = gym.spaces.Box(-1, 1, (2,), np.float32)
TWO = gym.spaces.Dict({"b": gym.spaces.Box(-9, 9, (1,)), "a": gym.spaces.Box(-9, 9, (2,))})


def minari_folder(root: Path, episodes: list[dict[str, Any]], obs: Any = BOX, act: Any = UNIT) -> Path:
    """A dataset written by minari's own storage; the collector would need jax."""
    pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    folder = root / "point" / "made-v0" / "data"
    folder.mkdir(parents=True)
    storage = MinariStorage.new(folder, observation_space=obs, action_space=act, data_format="hdf5")
    storage.update_episodes([EpisodeBuffer(**episode) for episode in episodes])
    storage.update_metadata({"dataset_id": "point/made-v0", "minari_version": "0.5.3"})
    return folder


def stored(length: int, infos: Any = None, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    episode = {
        "seed": 40 + length,
        "observations": rng.normal(size=(length + 1, 3)),
        "actions": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        "rewards": [0.0] * length,
        "terminations": [False] * length,
        "truncations": [False] * length,
        "infos": infos or {},
    }
    return {**episode, **changes}


def test_minari_episodes_are_aligned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = stored(3)["actions"].copy()
    wide[1, 0] = 1.5
    episodes = [
        stored(3, {"success": np.array([False, False, True])}, actions=wide),
        stored(2, {"success": np.array([True, False, True])}),  # once more at the front: the reset
    ]
    folder = minari_folder(tmp_path, episodes)
    demos = read_minari(str(folder), task(3, 2))
    assert demos.lengths.tolist() == [3, 2]
    assert demos.seeds.tolist() == [43, 42]
    np.testing.assert_array_equal(demos.observations[:3], np.float32(episodes[0]["observations"][:3]))
    np.testing.assert_array_equal(demos.observations[3:], np.float32(episodes[1]["observations"][:2]))
    np.testing.assert_array_equal(demos.actions[:3], wide.clip(-1, 1))
    assert demos.success.tolist() == [False, False, True, False, True]
    assert demos.details == {"success": 'infos["success"]', "clipped_entries": 1}
    assert demos.source == "Minari dataset point/made-v0"
    np.testing.assert_array_equal(read_minari(str(folder.parent), task(3, 2)).actions, demos.actions)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    np.testing.assert_array_equal(read_minari("point/made-v0", task(3, 2)).actions, demos.actions)


def test_minari_without_success_and_with_dict_observations(tmp_path: Path) -> None:
    whole = stored(3)["observations"]
    parts = {"b": whole[:, 2:].astype(np.float32), "a": whole[:, :2].astype(np.float32)}
    told = {"success": np.array([True, True])}
    episodes = [
        stored(3, observations=parts, seed=None),
        stored(2, told, observations={key: value[:3] for key, value in parts.items()}, seed=2**63 + 1),
    ]
    demos = read_minari(str(minari_folder(tmp_path, episodes, obs=TWO)), task(3, 2))
    # gymnasium.spaces.flatten is what a flattened environment shows, so it decides the order of the columns.
    for row in range(3):
        flat = gym.spaces.flatten(TWO, {key: value[row] for key, value in parts.items()})
        np.testing.assert_array_equal(demos.observations[row], flat)
    assert demos.success.tolist() == [False, False, False, True, True]
    assert demos.details["success"] == "unknown in 1 of 2 episodes"
    assert demos.seeds.tolist() == [-1, -1]


def test_minari_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    small = task(3, 2)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "home"))
    with pytest.raises(UserError, match="minari download D4RL/door/human-v2"):
        read_minari("D4RL/door/human-v2", small)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="could not open"):
        read_minari(str(tmp_path / "empty"), small)
    images = gym.spaces.Box(0, 255, (3, 1), np.float32)
    tall = gym.spaces.Box(-2, 2, (2,), np.float32)
    for index, (episode, spaces, message) in enumerate(
        [
            (stored(2), {"act": tall}, r"actions in \[-2, 2\]"),
            (stored(2, observations=np.zeros((3, 3, 1))), {"obs": images}, "plain vectors"),
            (stored(2, observations=np.zeros((5, 3))), {}, "observations for 2 actions"),
            (stored(2, {"success": np.zeros(7, bool)}), {}, "7 entries"),
            (stored(2, observations=np.full((3, 3), np.nan)), {}, "not finite"),
        ]
    ):
        folder = minari_folder(tmp_path / str(index), [episode], **spaces)
        with pytest.raises(UserError, match=message):
            read_minari(str(folder), small)
    (folder / "main_data.hdf5").write_bytes(b"broken")
    with pytest.raises(UserError, match="damaged"):
        read_minari(str(folder), small)
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingExtra, match=r"policy-decorator\[minari\]"):
        read_minari(str(folder), small)
