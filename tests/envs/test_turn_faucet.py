"""Procedural faucets, the paper's state of TurnFaucet, what turns them, and the loader of PartNet-Mobility."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policy_decorator.demos.dataset import check
from policy_decorator.demos.record import record_expert
from policy_decorator.envs import TASKS, get_task
from policy_decorator.envs.maniskill import faucets, partnet
from policy_decorator.errors import UserError

SOURCE, TARGET = "maniskill/turn-procedural-faucet-source", "maniskill/turn-procedural-faucet"
ALL = [seed for seeds in faucets.SPLITS.values() for seed in seeds]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLICY_DECORATOR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    """Ten source faucets. No test may depend on what the others did to it."""
    made = _make(SOURCE)
    yield made
    made.close()


def _make(name: str) -> Any:
    pytest.importorskip("mani_skill", reason="mani_skill is not installed")
    try:
        return TASKS[name].make_env(None)
    except UserError as error:
        if "Vulkan" not in str(error):
            raise
        pytest.skip("there is no Vulkan driver (make sim-drivers)")


def _faucet(env: Any) -> str:
    return env.simulator._faucets[0].name


def test_target_faucets_are_in_no_demonstration_and_both_splits_have_all_kinds() -> None:
    assert not set(faucets.SPLITS["source"]) & set(faucets.SPLITS["target"])
    assert {split: len(seeds) for split, seeds in faucets.SPLITS.items()} == {"source": 10, "target": 4}
    for seeds in faucets.SPLITS.values():
        assert {faucets.make(seed).kind for seed in seeds} == set(faucets.KINDS)


@pytest.mark.parametrize("seed", ALL)
def test_a_faucet_can_be_turned(seed: int) -> None:
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    faucet = faucets.make(seed)
    assert all(part.is_convex and part.is_watertight for part in (*faucet.body, *faucet.switch))
    size = np.subtract(*(faucets._info(faucet)["bbox"][end] for end in ("max", "min")))
    assert size.max() < 0.3
    assert min(part.vertices[:, 2].min() for part in faucet.body) > -1e-6  # stands on the table
    assert np.linalg.norm(faucet.axis) == pytest.approx(1)
    assert np.radians(55) < faucet.upper < np.radians(105)
    points = np.concatenate([part.vertices for part in faucet.switch])
    arm = np.linalg.norm(np.cross(points, faucet.axis), axis=1).max()
    assert 0.035 < arm < 0.14, "long enough for fingers, short enough to be near"


def test_shapes_differ_between_faucets() -> None:
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    sizes = np.array([[part.volume for part in faucets.make(seed).switch][-1] for seed in ALL])
    assert len(np.unique(sizes.round(9))) == len(ALL)
    axes = np.array([faucets.make(seed).axis for seed in ALL])
    assert {tuple(axis) for axis in axes.round(6) + 0.0} >= {(0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0), (0, -1, 0)}


def test_files_follow_the_seed_and_are_written_once(tmp_path: Path) -> None:
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    first, second = (faucets.write_all([3, 4], tmp_path / name) for name in ("a", "b"))
    assert list(first) == ["procedural-3", "procedural-4"]
    for name, path in first.items():
        files = sorted(p.relative_to(path) for p in path.rglob("*.*"))
        assert {Path("info.json"), Path("mobility_cvx.urdf"), Path("parts/switch_0.obj")} <= set(files)
        assert all((path / f).read_bytes() == (second[name] / f).read_bytes() for f in files)
    stamp = (first["procedural-3"] / "info.json").stat().st_mtime_ns
    faucets.write_all([3, 4], tmp_path / "a")
    assert (first["procedural-3"] / "info.json").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["procedural-3", "procedural-4"]


def test_the_slower_of_two_writers_keeps_what_the_faster_wrote(tmp_path: Path) -> None:
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    path = faucets.write_all([0], tmp_path)["procedural-0"]
    faucets._write(faucets.make(0), path)
    assert [p.name for p in tmp_path.iterdir()] == ["procedural-0"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="POLICY_DECORATOR_CACHE"):
        faucets.write_all([0], tmp_path / "file")


def test_the_state_is_the_papers(env: Any) -> None:
    obs, _ = env.reset(seed=2)
    for _ in range(3):
        obs, *_ = env.step(np.full(7, 0.3, np.float32))
    sim = env.simulator
    robot = sim.agent.robot
    parts = [robot.qpos, robot.qvel, robot.pose.raw_pose, sim.agent.tcp.pose.raw_pose]
    np.testing.assert_allclose(obs[:32], np.concatenate([p[0].numpy() for p in parts]), atol=1e-6)
    assert obs[32] == pytest.approx(0.9 * sim._target_switch_links[0].joint.limits[0, 1].item(), abs=1e-6)
    hinge = sim._target_switch_links[0].joint.get_global_pose().to_transformation_matrix()[0].numpy()
    np.testing.assert_allclose(obs[33:36], hinge[:3, 0], atol=1e-6)
    np.testing.assert_allclose(obs[36:39], obs[39:42], atol=1e-6)  # nothing has touched it
    assert obs[42] == pytest.approx(sim.target_angle.item() - sim.current_angle.item())


def test_it_succeeds_past_nine_tenths_of_the_range(env: Any) -> None:
    obs, _ = env.reset(seed=2)
    sim = env.simulator
    upper = sim._target_switch_links[0].joint.limits[0, 1].item()
    for part, expected in ((0.8, False), (0.95, True)):
        sim.faucet.set_qpos(np.array([part * upper]))
        now, reward, terminated, _, info = env.step(np.zeros(7, np.float32))
        assert info["success"] is expected
        assert reward == expected
        assert not terminated
    np.testing.assert_array_equal(now[36:39], obs[36:39])  # where the switch was at reset
    axis, start, end = now[33:36], now[36:39], now[39:42]
    assert np.linalg.norm(end - start) > 0.005
    assert np.dot(end - start, axis) == pytest.approx(0, abs=1e-4)  # it turned about the axis


def test_the_seed_decides_which_faucet_stands_there_whatever_came_before(env: Any) -> None:
    def look(made: Any, seed: int) -> tuple[str, bytes]:
        obs, _ = made.reset(seed=seed)
        return _faucet(made), obs.tobytes()

    seeds = list(range(25))  # more than there are resets between garbage collections
    forwards = {seed: look(env, seed) for seed in seeds}
    other = _make(SOURCE)
    assert {seed: look(other, seed) for seed in reversed(seeds)} == forwards
    other.close()
    assert len({name for name, _ in forwards.values()}) >= 7


def test_a_state_that_is_put_back_tells_the_layout_too(env: Any) -> None:
    obs, _ = env.reset(seed=5)
    act = TASKS[SOURCE].make_privileged_expert(env)  # pyright: ignore[reportOptionalCall]
    for _ in range(24):
        obs, *_ = env.step(act(obs))
    state = env.simulator.get_state().clone()
    assert abs(obs[42] - obs[32]) > 0.02, "the switch has moved"
    env.reset(seed=5)
    with torch.inference_mode():  # as the environment itself
        env.simulator.target_link_pos[:], env.simulator.target_joint_axis[:] = 0, 0
        env.simulator.set_state(state)
    np.testing.assert_allclose(env.simulator.get_obs()[0].numpy(), obs, atol=1e-5)


@pytest.mark.parametrize("name", [SOURCE, TARGET])
def test_the_expert_turns_faucets(name: str) -> None:
    _make(name).close()
    demos = record_expert(TASKS[name], 3, seed=100, max_attempts=4, noise=0.05)
    assert demos.details["dropped"] <= 1
    assert demos.lengths.max() < 200
    assert np.abs(demos.actions).max() <= 1
    check(demos, get_task(TARGET))  # of other faucets, and meant for these
    with pytest.raises(UserError, match="not of 'maniskill/turn-faucet'"):
        check(demos, get_task("maniskill/turn-faucet"))


def test_missing_faucets_are_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(SOURCE).close()
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    _write_partnet(tmp_path, partnet.FAUCETS.target[1:])
    with pytest.raises(UserError, match=r"faucets 5014 of .*mobility_cvx.urdf .*download_asset .*MS_ASSET_DIR"):
        TASKS["maniskill/turn-faucet"].make_env(None)


@pytest.mark.parametrize(
    ("name", "split"), [("maniskill/turn-faucet-source", "source"), ("maniskill/turn-faucet", "target")]
)
def test_faucets_of_partnet_are_loaded(name: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes in their place, with the links that ManiSkill's list of faucets gives each of them."""
    _make(SOURCE).close()
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    models = getattr(partnet.FAUCETS, split)
    _write_partnet(tmp_path, models)
    env: Any = TASKS[name].make_env(None)
    seen = set()
    for seed in range(20 if split == "target" else 60):
        obs, _ = env.reset(seed=seed)
        assert np.isfinite(obs).all()
        unlimited = _faucet(env).startswith("5053")
        assert obs[32] == pytest.approx(np.pi / 2 if unlimited else 0.9 * 1.7, abs=1e-5)
        assert obs[42] == pytest.approx(obs[32], abs=1e-6), "it starts closed"
        seen.add(_faucet(env).split("-")[0])
    assert seen == set(models)
    env.close()


def _write_partnet(root: Path, ids: tuple[str, ...]) -> None:
    from policy_decorator.envs.maniskill.turn_faucet import partnet_info

    for name in ids:
        links = {link: kind for link, kind, _ in partnet_info()[name]["semantics"]}
        base = next(link for link, kind in links.items() if kind in ("static", "free"))
        text = '<link name="base"/>'
        for k, (link, kind) in enumerate(links.items()):
            box = f'<origin xyz="0 0.4 {0.3 * k}"/><geometry><box size="0.1 0.6 0.1"/></geometry>'
            text += f'<link name="{link}"><visual>{box}</visual><collision>{box}</collision></link>'
            joint = {"hinge": "continuous" if name == "5053" else "revolute", "slider": "prismatic"}.get(kind, "fixed")
            text += f'<joint name="j{k}" type="{joint}"><parent link="{"base" if link == base else base}"/>'
            text += f'<child link="{link}"/><axis xyz="0 0 1"/><limit lower="-0.5" upper="1.2"/></joint>'
        folder = root / "data" / "partnet_mobility" / "dataset" / name
        folder.mkdir(parents=True)
        (folder / "mobility_cvx.urdf").write_text(f'<robot name="faucet">{text}</robot>')
