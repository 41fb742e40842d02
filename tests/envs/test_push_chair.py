"""PushChair: the paper's state and success on real and procedural chairs, layouts that follow the seed, an expert."""

import importlib.util
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy_decorator.envs import TASKS, get_task
from policy_decorator.envs.maniskill import chairs, partnet, partnet_chairs, push_chair_expert
from policy_decorator.envs.maniskill import simulated as simulated_of
from policy_decorator.envs.maniskill.simulator import how_to_get_a_driver, make_simulator
from policy_decorator.errors import UserError

needs_maniskill = pytest.mark.skipif(
    importlib.util.find_spec("mani_skill") is None, reason="mani_skill is not installed"
)
QPOS, QVEL = slice(0, 19), slice(19, 38)
CHAIR, CHAIR_QPOS, CHAIR_QVEL, TIPS = slice(44, 57), slice(57, 82), slice(82, 107), slice(107, 119)


def _make(name: str) -> Any:
    """ManiSkill's own environment of the task `name`; skips where there is no Vulkan driver."""
    try:
        return make_simulator(simulated_of(TASKS[f"maniskill/{name}"]))
    except UserError as error:
        if "Vulkan" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    """One environment for all tests: no test may depend on what the others did to it."""
    pytest.importorskip("mani_skill", reason="mani_skill is not installed")
    env = _make("push-procedural-chair-source")
    yield env
    env.close()


def _actions(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (length, 20)).astype(np.float32)


def _play(env: Any, seed: int, actions: np.ndarray) -> np.ndarray:
    """States (L + 1, 131) of one episode."""
    obs, _ = env.reset(seed=seed)
    return np.concatenate([obs.numpy(), *(env.step(action)[0].numpy() for action in actions)])


def _model(env: Any) -> int:
    return int(env.chair._objs[0].name.split("chair_")[1].split("-")[0])


def test_four_tasks_of_the_papers_sizes() -> None:
    chosen = [task for name, task in TASKS.items() if "chair" in name]
    assert len(chosen) == 4
    for task in chosen:
        assert (task.obs_size, task.action_size, task.max_steps) == (131, 20, 200)
        assert task.make_expert is push_chair_expert.make_expert


def test_chairs_are_a_family_in_two_disjoint_parts() -> None:
    drawn = [chairs.sample(seed) for seed in (*chairs.SOURCE, *chairs.TARGET)]
    assert len(set(drawn)) == len(drawn) == 8
    assert drawn == [chairs.sample(seed) for seed in (*chairs.SOURCE, *chairs.TARGET)]
    many = [chairs.sample(seed) for seed in range(200)]
    assert {chair.legs for chair in many} == {4, 5, 6}
    assert 50 < sum(chair.arm_height > 0 for chair in many) < 150
    for chair in many:
        assert len(chair.rest) == len(chair.joints) == 2 * chair.legs + 1 <= 25
        assert 0.8 < chair.height < 1.3


def test_the_expert_needs_no_simulator() -> None:
    program = (
        "import sys, numpy as np; from policy_decorator.envs.maniskill.push_chair_expert import make_expert; "
        "print(make_expert()(np.zeros(131, np.float32)).shape, 'mani_skill' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(20,) False\n"


def test_the_state_has_the_papers_parts_in_its_order(env: Any) -> None:
    states = _play(env, 3, _actions(20))
    assert states.shape == (21, 131)
    assert states.dtype == np.float32
    assert np.isfinite(states).all()
    robot, state = env.agent.robot, states[-1]
    qpos = dict(zip([j.name for j in robot.active_joints], robot.get_qpos()[0].tolist(), strict=True))
    in_order = [qpos[f"{side}_panda_joint{i}"] for side in ("right",) for i in range(1, 8)]
    np.testing.assert_allclose(state[QPOS][:8], [qpos["linear_actuator_height"], *in_order], atol=1e-6)
    assert state[QPOS][10] == pytest.approx(qpos["left_panda_joint1"])
    assert [state[38], state[39], state[40]] == pytest.approx(
        [qpos[f"root_{axis}_joint"] for axis in ("x_axis", "y_axis", "z_rotation")]
    )
    np.testing.assert_allclose(state[CHAIR][:7], env.chair.pose.raw_pose[0], atol=1e-6)
    moving = 2 * chairs.sample(_model(env)).legs + 1
    assert np.count_nonzero(state[CHAIR_QPOS][moving:]) == np.count_nonzero(state[CHAIR_QVEL][moving:]) == 0
    tips = state[TIPS].reshape(4, 3)
    for arm, side in enumerate(("right", "left")):
        hand = env.agent.tcp[side].pose.p[0].numpy()
        for tip in tips[2 * arm : 2 * arm + 2]:
            assert np.linalg.norm(tip - hand) < 0.06
        # ManiSkill2's order: the right finger, which stands at the hand's negative y, comes first.
        across = env.agent.tcp[side].pose.to_transformation_matrix()[0, :3, 1].numpy()
        assert (tips[2 * arm + 1] - tips[2 * arm]) @ across > 0.01


def test_chair_joints_are_in_their_order(env: Any) -> None:
    state = _play(env, 3, _actions(1))[0]
    chair = chairs.sample(_model(env))
    np.testing.assert_allclose(state[CHAIR_QPOS][: len(chair.rest)], chair.rest, atol=1e-5)


def test_actions_are_base_left_arm_right_arm(env: Any) -> None:
    obs, _ = env.reset(seed=1)
    angle, start = float(obs[0, 40]), obs[0].numpy()
    action = np.zeros(20, np.float32)
    action[0], action[3], action[4], action[12] = 1.0, -1.0, 0.1, -0.1  # forward, down, first joints of the arms
    action[[11, 19]] = 0.0, 1.0  # grippers: half open, open
    for _ in range(20):
        obs, *_ = env.step(action)
    moved = obs[0].numpy() - start
    forward = np.array([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(moved[38:40], 0.5 * forward, atol=0.08)  # 0.5 m/s for one second
    assert moved[0] == pytest.approx(-0.5, abs=0.08)
    assert moved[10] == pytest.approx(0.314, abs=0.1)
    assert moved[1] == pytest.approx(-0.314, abs=0.1)
    left_finger, right_finger = obs[0, 17].item(), obs[0, 8].item()
    assert left_finger == pytest.approx(0.015, abs=0.004)
    assert right_finger == pytest.approx(0.04, abs=0.004)


def test_a_seed_decides_chair_layout_and_episode_whatever_came_before(env: Any) -> None:
    other = _make("push-procedural-chair-source")
    first, model = _play(env, 5, _actions(30)), _model(env)
    _play(env, 6, _actions(12, seed=1))
    _play(env, 8, _actions(3, seed=2))
    np.testing.assert_array_equal(_play(env, 5, _actions(30)), first)
    _play(other, 7, _actions(9, seed=3))
    np.testing.assert_array_equal(_play(other, 5, _actions(30)), first)
    assert _model(env) == _model(other) == model
    other.close()


@needs_maniskill
@pytest.mark.parametrize(
    ("name", "models"), [("push-procedural-chair-source", chairs.SOURCE), ("push-procedural-chair", chairs.TARGET)]
)
def test_layouts_are_those_of_the_paper(name: str, models: tuple[int, ...]) -> None:
    env = _make(name)
    seen, starts = set(), []
    for seed in range(12):
        obs, _ = env.reset(seed=seed)
        seen.add(_model(env))
        state = obs[0].numpy()
        starts.append(state)
        chair, base = state[CHAIR][:2], state[38:40]
        assert 0.8 <= np.linalg.norm(chair) <= 1.2
        assert 0.8 <= np.linalg.norm(base - chair) <= 1.2
        assert _angle_between(_facing(env), -chair) <= 0.4 * np.pi + 1e-4
        assert _angle_between(base - chair, -_facing(env)) <= 0.2 * np.pi + 1e-4
        assert _angle_between([np.cos(state[40]), np.sin(state[40])], chair - base) <= 0.05 * np.pi + 1e-4
        for joint in env.chair._objs[0].active_joints:
            low, high = ((0.05, 0.15), (5, 15)) if "seat_swivel" in joint.name else ((0, 0.1), (0, 0.5))
            assert low[0] <= joint.friction <= low[1]
            assert high[0] <= joint.damping <= high[1]
    assert seen <= set(models)
    assert len(seen) >= 3
    assert len(np.unique(np.stack(starts), axis=0)) == 12
    env.close()


def _facing(env: Any) -> np.ndarray:
    matrix = env.seat.pose.to_transformation_matrix()[0, :3, :3].numpy()
    return (matrix @ env._forward[0].numpy())[:2]


def _angle_between(a: Any, b: Any) -> float:
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))


def _put(env: Any, x: float, tilt: float = 0.0) -> dict[str, Any]:
    """What is evaluated with the chair's root at (x, 0), leaning by `tilt`, after it did not move for a step."""
    from mani_skill.utils.structs import Pose

    height = float(env.chair.pose.p[0, 2])
    position = torch.tensor([[x, 0.0, height]])
    pose = Pose.create_from_pq(position, torch.tensor([[np.cos(tilt / 2), np.sin(tilt / 2), 0, 0]]).float())
    env.chair.set_pose(pose)
    env._before_control_step()
    return {name: value[0].item() for name, value in env.evaluate().items()}


def test_success_is_near_and_upright_and_static(env: Any) -> None:
    env.reset(seed=0)
    assert not env.evaluate()["success"].item()
    assert _put(env, 0.14)["success"]
    far = _put(env, 0.16)
    assert not far["success"]
    assert not far["chair_near"]
    assert far["chair_static"]
    leaning = _put(env, 0.0, tilt=0.06 * np.pi)
    assert not leaning["success"]
    assert leaning["tilt"] == pytest.approx(0.06 * np.pi, abs=1e-3)
    _put(env, 0.1)
    env.chair.set_pose(_shifted(env, 0.1 / 20 + 1e-4))  # a little more than 0.1 m/s at 20 Hz
    for _ in range(2):  # asking twice is what broke the first version
        moving = env.evaluate()
        assert not moving["chair_static"].item()
        assert not moving["success"].item()


def _shifted(env: Any, dx: float) -> Any:
    from mani_skill.utils.structs import Pose

    pose = env.chair.pose
    return Pose.create_from_pq(pose.p + pose.p.new_tensor([dx, 0, 0]), pose.q)


@needs_maniskill
def test_three_cameras_look_down_from_the_base() -> None:
    task = get_task("maniskill/push-procedural-chair:rgbd")
    if missing := task.why_not():
        pytest.skip(missing)
    env = task.make_env(None)
    obs, _ = env.reset(seed=3)
    assert env.observation_space.contains(obs)
    assert obs["state"].shape == (65,)
    assert obs["rgb"].shape == (9, 50, 125)
    assert obs["depth"].shape == (3, 50, 125)
    np.testing.assert_allclose(obs["state"][44:47], [*obs["state"][38:40], 0], atol=1e-6)  # where the base stands
    red = (obs["rgb"][0] > 150) & (obs["rgb"][1:3] < 60).all(axis=0)
    assert red.sum() > 10, "the target is before the robot at first"
    floor = obs["depth"][:, -1]  # the lowest row looks down most: the floor is 2 m below or what hides it nearer
    assert 500 < floor.max() < 4000
    env.close()


def test_a_stored_state_comes_back_at_rest(env: Any) -> None:
    env.reset(seed=2)
    for action in _actions(5):
        env.step(action)
    obs, stored = env.get_obs(), env.get_state_dict()
    env.step(_actions(1, seed=4)[0])
    env.set_state_dict(stored)
    np.testing.assert_allclose(env.get_obs()[:, :119], obs[:, :119], atol=1e-4)
    assert env.evaluate()["chair_static"].item()  # no step since: nothing to compare with


@pytest.mark.slow
@needs_maniskill
@pytest.mark.parametrize("name", ["push-procedural-chair-source", "push-procedural-chair"])
def test_the_expert_succeeds(name: str) -> None:
    env, successes = _make(name), 0
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        act = push_chair_expert.make_expert()
        for _ in range(200):
            action = act(obs[0].numpy())
            assert np.abs(action).max() <= 1
            obs, reward, _, _, info = env.step(action)
            assert bool(reward) == info["success"].item()
            if info["success"].item():
                successes += 1
                break
    env.close()
    assert successes >= 4


@needs_maniskill
def test_the_robots_description_is_written_to_the_cache_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from policy_decorator.envs.maniskill.mobile_panda import urdf_file

    monkeypatch.setenv("POLICY_DECORATOR_CACHE", str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    path = Path(urdf_file())
    assert path.is_relative_to(tmp_path / "cache" / "maniskill")
    meshes = {mesh.get("filename", "") for mesh in ET.parse(path).getroot().iter("mesh")}
    assert len(meshes) > 10
    assert all(Path(mesh).is_file() for mesh in meshes)
    written = path.stat().st_mtime_ns
    assert urdf_file() == str(path)
    assert path.stat().st_mtime_ns == written
    assert list(path.parent.iterdir()) == [path]


@needs_maniskill
def test_missing_chairs_are_named_with_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    (tmp_path / "data/partnet_mobility/dataset/3027").mkdir(parents=True)
    (tmp_path / "data/partnet_mobility/dataset/3027/mobility_cvx.urdf").write_text("<robot/>")
    with pytest.raises(
        UserError, match=r"chairs 3022 3030 3070 3076 of PartNet-Mobility are not in .*partnet_mobility/dataset"
    ) as error:
        _make("push-chair-source")
    assert TASKS["maniskill/push-chair-source"].why_not() in (str(error.value), how_to_get_a_driver())
    assert TASKS["maniskill/push-procedural-chair-source"].why_not() in (None, how_to_get_a_driver())
    assert "partnet_mobility_chair" in str(error.value)
    assert "maniskill/push-procedural-chair" in str(error.value)


@needs_maniskill
def test_partnet_chairs_are_loaded_placed_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes in the layout of PartNet-Mobility's files; the resting states are the real ones of the wheel."""
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    resting = {model: partnet_chairs._resting(model) for model in partnet_chairs.TARGET}
    for model, info in resting.items():
        _write_partnet(partnet.folder() / str(model), len(info["initial_qpos"]), info["position"][2])
    env, seen = _make("push-chair"), set()
    for seed in range(12):
        obs, _ = env.reset(seed=seed)
        model, state = _model(env), obs[0].numpy()
        seen.add(model)
        rest = resting[model]["initial_qpos"]
        assert 0.8 <= np.linalg.norm(state[CHAIR][:2]) <= 1.2
        np.testing.assert_allclose(state[CHAIR_QPOS][: len(rest)], rest, atol=1e-4)
        assert not state[CHAIR_QPOS][len(rest) :].any()
        assert _angle_between(_facing(env), -state[CHAIR][:2]) <= 0.4 * np.pi + 1e-3
        frictions = {link.name.split("_link_")[-1]: link for link in env.chair._objs[0].links}
        (wheel,) = {s.physical_material.static_friction for s in frictions["0"].collision_shapes}
        assert wheel == pytest.approx(1.0)
        drives = {joint.name.split("joint_")[-1]: joint.damping for joint in env.chair._objs[0].active_joints}
        assert 5 <= drives["swivel"] <= 15
        assert max(d for name, d in drives.items() if name.isdigit()) <= 0.5
    assert seen == set(partnet_chairs.TARGET)
    obs, *_ = env.step(_actions(1)[0])
    assert np.isfinite(obs.numpy()).all()
    env.close()


def _write_partnet(folder: Path, moving: int, height: float) -> None:
    """A chair of `moving` joints: wheels under a support, a lift with its helper link, a seat that faces z, y up."""
    import trimesh

    folder.mkdir(parents=True)
    for name, size in {"wheel": (0.08, 0.08, 0.08), "support": (0.1, 0.4, 0.1), "seat": (0.5, 0.1, 0.5)}.items():
        trimesh.creation.box(size).export(folder / f"{name}.obj")
    scale = partnet_chairs.SCALE
    floor = -height / scale + 0.04
    links, joints = [_link("base"), _link("support", "support", "leg-1")], []
    joints.append('<joint name="fixed" type="fixed"><parent link="base"/><child link="support"/></joint>')
    for i in range(moving - 2):
        links.append(_link(f"link_{i}", "wheel", f"wheel-{i}"))
        at = (0.4 * np.cos(6.28 * i / moving), floor, 0.4 * np.sin(6.28 * i / moving))
        joints.append(_joint(f"joint_{i}", "continuous", "support", f"link_{i}", at, (1, 0, 0)))
    links += [_link("seat_helper"), _link("seat", "seat", "seat-7")]
    joints.append(_joint("joint_lift", "prismatic", "support", "seat_helper", (0, 0, 0), (0, 1, 0)))
    joints.append(_joint("joint_swivel", "continuous", "seat_helper", "seat", (0, 0, 0), (0, 1, 0)))
    text = "".join(("<robot name='chair'>", *links, *joints, "</robot>"))
    # As in the data set: y is up in the meshes, and the first joint turns it to z.
    text = text.replace(
        '<joint name="fixed" type="fixed">', '<joint name="fixed" type="fixed"><origin rpy="1.5708 0 0"/>'
    )
    (folder / "mobility_cvx.urdf").write_text(text)


def _link(name: str, mesh: str | None = None, visual: str = "") -> str:
    if mesh is None:
        return f'<link name="{name}"/>'
    shape = f'<geometry><mesh filename="{mesh}.obj"/></geometry>'
    return f'<link name="{name}"><visual name="{visual}">{shape}</visual><collision>{shape}</collision></link>'


def _joint(name: str, kind: str, parent: str, child: str, at: tuple[float, ...], axis: tuple[int, ...]) -> str:
    limit = '<limit lower="0" upper="0.2"/>' if kind == "prismatic" else ""
    return (
        f'<joint name="{name}" type="{kind}"><origin xyz="{at[0]} {at[1]} {at[2]}"/><axis xyz="{axis[0]} {axis[1]} '
        f'{axis[2]}"/><parent link="{parent}"/><child link="{child}"/>{limit}</joint>'
    )


def test_joints_are_read_depth_first() -> None:
    pairs = [("a", "root", "x"), ("b", "root", "y"), ("c", "x", "z")]
    text = "".join(f'<joint name="{n}"><parent link="{p}"/><child link="{c}"/></joint>' for n, p, c in pairs)
    links = "".join(f'<link name="{name}"/>' for name in ("x", "root", "y", "z"))
    robot = ET.fromstring(f"<robot>{links}{text}</robot>")
    assert json.dumps([joint.get("name") for joint in partnet_chairs._depth_first(robot)]) == '["a", "c", "b"]'
