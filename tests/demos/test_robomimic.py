"""robomimic's files, written here in the published form: attributes, masks, both orders of the objects' numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from policy_decorator.cli import main
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.robomimic import read_robomimic
from policy_decorator.envs import TASKS
from policy_decorator.envs.robosuite import SCENES
from policy_decorator.errors import UserError

LENGTHS = {1: 5, 2: 3, 10: 4}
OLD_ARM = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
NEW_ARM = {
    "type": "BASIC",
    "body_parts": {"right": {**OLD_ARM, "input_ref_frame": "world", "gripper": {"type": "GRIP"}}},
}


def env_args(name: str, *, version: str = "1.4.1", controllers: Any = OLD_ARM, **changes: Any) -> dict[str, Any]:
    scene = SCENES[name]
    kwargs = {
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": False,
        "control_freq": 20,
        "controller_configs": controllers,
        "robots": ["Panda"] * scene.robots,
        "camera_depths": False,
        "camera_heights": 84,
        "camera_widths": 84,
        "reward_shaping": False,
        **scene.options,
    }
    return {"env_name": scene.env_name, "env_version": version, "type": 1, "env_kwargs": {**kwargs, **changes}}


def demo(name: str, length: int) -> dict[str, np.ndarray]:
    """Poses that belong together, in robosuite 1.4's order."""
    rng, scene = np.random.default_rng(length), SCENES[name]
    obs: dict[str, np.ndarray] = {}
    for i in range(scene.robots):
        obs[f"robot{i}_eef_pos"] = rng.uniform(-0.3, 0.3, (length, 3)) + np.array([0, 0, 1])
        obs[f"robot{i}_eef_quat"] = Rotation.random(length, rng).as_quat()
        obs[f"robot{i}_gripper_qpos"] = rng.uniform(0, 0.04, (length, 2)) * [1, -1]
        obs[f"robot{i}_joint_pos"] = rng.uniform(-1, 1, (length, 7))  # there, and not of interest
    obs["object"] = rng.uniform(-1, 1, (length, scene.objects_size))
    if name != "transport":
        obs["object"][:, 3:7] = Rotation.random(length, rng).as_quat()
    if name in ("square", "can"):
        for t in range(length):
            hand, thing = (np.eye(4) for _ in range(2))
            hand[:3, :3] = Rotation.from_quat(obs["robot0_eef_quat"][t]).as_matrix()
            thing[:3, :3] = Rotation.from_quat(obs["object"][t, 3:7]).as_matrix()
            hand[:3, 3], thing[:3, 3] = obs["robot0_eef_pos"][t], obs["object"][t, :3]
            seen = np.linalg.inv(hand) @ thing
            quat = Rotation.from_matrix(seen[:3, :3]).as_quat(canonical=True)
            obs["object"][t, 7:] = [*seen[:3, 3], *quat]
    if name == "lift":
        obs["object"][:, 7:] = obs["robot0_eef_pos"] - obs["object"][:, :3]
    rewards = np.zeros(length)
    rewards[-1] = 1.0
    actions = rng.uniform(-1, 1, (length, scene.action_size))
    return {
        "actions": actions,
        "rewards": rewards,
        "dones": rewards.astype(int),
        **{f"obs/{k}": v for k, v in obs.items()},
    }


Change = Callable[[Any], Any]


def write(path: Path, name: str, change: Change | None = None, **about: Any) -> Path:
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, length in LENGTHS.items():
            group = data.create_group(f"demo_{number}")
            group.attrs.update({"num_samples": length, "model_file": "<mujoco/>"})
            group["states"] = np.zeros((length, 45))
            for key, value in demo(name, length).items():
                group[key] = value
                if key.startswith("obs/"):
                    group[f"next_{key}"] = value
        data.attrs.update({"total": sum(LENGTHS.values()), "env_args": json.dumps(env_args(name, **about), indent=4)})
        file["mask/train"] = np.array([b"demo_10", b"demo_1"])
        file["mask/valid"] = np.array([b"demo_2"])
        if change is not None:
            change(file)
    return path


def expected(name: str, number: int) -> np.ndarray:
    made, robots = demo(name, LENGTHS[number]), range(SCENES[name].robots)
    keys = [f"obs/robot{i}_{key}" for i in robots for key in ("eef_pos", "eef_quat", "gripper_qpos")]
    return np.concatenate([made[key] for key in [*keys, "obs/object"]], axis=1).astype(np.float32)


@pytest.mark.parametrize("name", SCENES)
def test_columns_order_and_success(name: str, tmp_path: Path) -> None:
    task = TASKS[f"robosuite/{name}"]
    demos = read_robomimic(write(tmp_path / "low_dim.hdf5", name), task)
    assert demos.lengths.tolist() == [5, 3, 4]  # by number, not by letter
    assert demos.observations.shape == (12, task.obs_size)
    for number, (observations, actions) in zip(LENGTHS, demos.split(), strict=True):
        np.testing.assert_allclose(observations, expected(name, number), atol=1e-6)
        np.testing.assert_array_equal(actions, demo(name, LENGTHS[number])["actions"].astype(np.float32))
    assert demos.success.nonzero()[0].tolist() == [4, 7, 11]
    assert demos.seeds.tolist() == [-1] * 3
    assert demos.source == "robomimic file low_dim.hdf5"
    assert demos.details == {"success": "rewards", "env_version": "1.4.1", "mask": None, "clipped_entries": 0}


def test_a_mask_chooses(tmp_path: Path) -> None:
    path, task = write(tmp_path / "d.hdf5", "square"), TASKS["robosuite/square"]
    assert read_robomimic(path, task, mask="train").lengths.tolist() == [5, 4]
    assert read_robomimic(path, task, mask="valid").lengths.tolist() == [3]
    with pytest.raises(UserError, match=r"no mask '20_percent'\. It has: train, valid"):
        read_robomimic(path, task, mask="20_percent")


def put(key: str, value: Any) -> Change:
    def change(file: Any) -> None:
        del file[key]
        file[key] = value

    return change


def columns(change: Callable[[np.ndarray], Any]) -> Change:
    """Of obs/object, in every demonstration."""

    def rearrange(file: Any) -> None:
        for group in file["data"].values():
            group["obs/object"][...] = change(group["obs/object"][:])

    return rearrange


@pytest.mark.parametrize("name", ["square", "can"])
def test_files_of_robosuite_1_5_have_the_poses_the_other_way_round(name: str, tmp_path: Path) -> None:
    def other(objects: np.ndarray) -> np.ndarray:
        seen = objects[:, 7:].copy()
        seen[0] = 0.0  # as it gives them in the first step
        return np.concatenate([seen, objects[:, :7]], axis=1)

    path = write(tmp_path / "d.hdf5", name, columns(other), version="1.5.1", controllers=NEW_ARM)
    demos = read_robomimic(path, TASKS[f"robosuite/{name}"])
    np.testing.assert_allclose(demos.observations[:5], expected(name, 1), atol=1e-6)


def test_files_of_robosuite_1_5_have_the_other_sign_for_the_cube(tmp_path: Path) -> None:
    turn = columns(lambda objects: objects * ([1] * 7 + [-1] * 3))
    demos = read_robomimic(write(tmp_path / "d.hdf5", "lift", turn, version="1.5.1"), TASKS["robosuite/lift"])
    np.testing.assert_allclose(demos.observations[:5], expected("lift", 1), atol=1e-6)


@pytest.mark.parametrize("name", SCENES)
def test_what_the_library_observes_becomes_what_the_environment_observes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    task, scene = TASKS[f"robosuite/{name}"], SCENES[name]
    env: Any = task.make_env(None)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, task.action_size))
    ours, theirs = [env.reset(seed=3)[0]], [env._simulator._get_observations()]
    for action in actions[:-1]:
        ours.append(env.step(action)[0])
        theirs.append(env._simulator._get_observations())
    env.close()

    def fill(file: Any) -> None:
        for number in (2, 10):
            del file[f"data/demo_{number}"]
        group = file["data/demo_1"]
        for key in [*group["obs"], "object-state"]:
            put(f"data/demo_1/obs/{key.removesuffix('-state')}", np.stack([row.get(key, 0) for row in theirs]))(file)
        put("data/demo_1/actions", actions)(file)
        put("data/demo_1/rewards", np.zeros(20))(file)
        group.attrs["num_samples"] = file["data"].attrs["total"] = 20

    path = write(tmp_path / "d.hdf5", name, fill, version="1.5.2", controllers=[NEW_ARM] * scene.robots)
    demos = read_robomimic(path, task)
    np.testing.assert_allclose(demos.observations, np.stack(ours), atol=2e-6)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"controllers": {**OLD_ARM, "control_delta": False}}, "absolute poses as actions"),
        ({"controllers": {**OLD_ARM, "type": "JOINT_POSITION"}}, "JOINT_POSITION instead of OSC_POSE"),
        ({"controllers": None}, "None instead of OSC_POSE"),
        ({"controllers": [OLD_ARM, {**OLD_ARM, "output_max": [0.1] * 6}]}, r"reach \[0.1"),
        ({"controllers": {"type": "BASIC", "body_parts": {"right": OLD_ARM}}}, "axes of each robot's base"),
        ({"controllers": {"type": "BASIC", "body_parts": {"arms": {"right": {"type": "IK_POSE"}}}}}, "IK_POSE"),
        ({"robots": ["Sawyer", "Panda"]}, r"robots \['Sawyer', 'Panda'\] instead of"),
        ({"robots": "Panda"}, r"robots \['Panda'\] instead of"),
        ({"control_freq": 10}, "control_freq 10 instead of 20"),
        ({"reward_shaping": True}, "reward_shaping True instead of False"),
    ],
)
def test_another_way_to_control_is_refused(about: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.hdf5", "transport", **about)
    with pytest.raises(UserError, match=rf"(?s){message}.*low_dim file"):
        read_robomimic(path, TASKS["robosuite/transport"])


def test_one_robot_stands_along_the_axes_of_the_world(tmp_path: Path) -> None:
    based = {"type": "BASIC", "body_parts": {"right": {**OLD_ARM, "input_ref_frame": "base"}}}
    path = write(tmp_path / "d.hdf5", "square", version="1.5.0", controllers=based, robots="Panda")
    assert read_robomimic(path, TASKS["robosuite/square"]).episodes == 3


def drop(key: str) -> Change:
    def change(file: Any) -> None:
        del file[key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("data"), "no /data with env_args"),
        (drop("data/demo_2/obs"), "demo_2 in .* has no observations, only states.*dataset_states_to_obs"),
        (drop("data/demo_2/obs/robot0_eef_quat"), "has no obs/robot0_eef_quat"),
        (drop("data/demo_2/rewards"), "has no rewards"),
        (drop("data/demo_2"), "9 steps, but should have 12"),
        (put("data/demo_2/obs/object", np.zeros((3, 10))), r"shape \(3, 10\), not \(3, 14\)"),
        (put("data/demo_2/rewards", np.zeros(2)), r"rewards of .* shape \(2,\), not \(3,\)"),
        (put("data/demo_2/actions", np.zeros((3, 14))), r"shape \(3, 14\), not \(3, 7\)"),
        (put("data/demo_2/actions", np.full((3, 7), 1.9)), "reach 1.9, not 1: absolute poses"),
        (put("data/demo_2/obs/object", np.eye(3, 14, 3)), "In neither order"),
        (lambda file: file["data/demo_2"].attrs.update({"num_samples": 9}), "3 actions for num_samples 9"),
        (lambda file: file["data"].attrs.update({"env_args": "{"}), "cannot be read as a robomimic file"),
        (lambda file: file["data"].attrs.update({"env_args": '{"env_name": "Lift"}'}), "cannot be read"),
        (put("data/demo_2/obs/robot0_eef_pos", np.full((3, 3), np.nan)), "neither order"),
        (put("data/demo_2/obs/robot0_gripper_qpos", np.full((3, 2), np.nan)), "not finite"),
    ],
)
def test_files_that_are_not_what_they_should_be(change: Change, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.hdf5", "square", change)
    with pytest.raises(UserError, match=f"(?s){message}"):
        read_robomimic(path, TASKS["robosuite/square"])


def test_another_task_and_other_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.hdf5", "can")
    with pytest.raises(UserError, match="holds PickPlaceCan, but robosuite/square is NutAssemblySquare"):
        read_robomimic(path, TASKS["robosuite/square"])
    with pytest.raises(UserError, match=r"demonstrations of robosuite/lift, .*, not of toy/reach"):
        read_robomimic(path, TASKS["toy/reach"])
    with pytest.raises(UserError, match="no robomimic file at"):
        read_robomimic(tmp_path / "missing.hdf5", TASKS["robosuite/can"])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="cannot be read as a robomimic file"):
        read_robomimic(path, TASKS["robosuite/can"])


def test_the_command_line_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "d.hdf5", "square"), tmp_path / "demos.h5"
    command = ["demos", "robosuite/square", "--from-robomimic", str(path), "--out", str(out)]
    assert main([*command, "--mask", "train", "--quiet"]) == 0
    assert "robomimic file d.hdf5" in capsys.readouterr().out
    assert Demonstrations.load(out).lengths.tolist() == [5, 4]
    assert main([*command, "--episodes", "1", "--overwrite"]) == 0
    assert Demonstrations.load(out).episodes == 1
    for wrong, message in [
        (["--noise", "0.1"], "--noise is about recording"),
        (["--from-dapg", "x"], "contradict each other"),
    ]:
        assert main([*command, "--overwrite", *wrong]) != 0
        assert message in capsys.readouterr().err
    assert main(["demos", "robosuite/square", "--out", str(tmp_path / "other.h5"), "--mask", "train"]) != 0
    assert "--mask is for robomimic files" in capsys.readouterr().err
