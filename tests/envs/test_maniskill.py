"""ManiSkill's tasks beyond what all tasks have in common: success, batches of tensors, what is missing."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from policy_decorator.envs import get_task, vector
from policy_decorator.envs.maniskill import SIMULATED, simulated, simulator
from policy_decorator.envs.maniskill.batched import BatchedSimulation
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import MissingExtra, UserError

STACK, PEG = "maniskill/stack-cube", "maniskill/peg-insertion-side"


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    pytest.importorskip("mani_skill", reason="mani_skill is not installed")
    try:
        get_task(STACK).make_env(None).close()
    except UserError:
        pytest.skip("there is no Vulkan driver (make sim-drivers)")


@pytest.fixture(scope="module")
def stack() -> Iterator[Any]:
    env = get_task(STACK).make_env(None)
    yield env
    env.close()


@pytest.fixture(scope="module")
def peg() -> Iterator[Any]:
    env = get_task(PEG).make_env(None)
    yield env
    env.close()


def _step(env: Any, gripper: float) -> dict[str, Any]:
    action = np.zeros(env.action_space.shape, np.float32)
    action[-1] = gripper
    return env.step(action)[-1]


def test_a_cube_on_the_other_is_success_once_let_go(stack: Any) -> None:
    from mani_skill.utils.structs.pose import Pose

    stack.reset(seed=0)
    inner = stack.simulator
    assert not _step(stack, 1.0)["success"]
    below = inner.cubeB.pose.p
    for height, success in ((0.0401, True), (0.12, False)):
        inner.cubeA.set_pose(Pose.create_from_pq(below + torch.tensor([[0.0, 0.0, height]])))
        inner.cubeA.set_linear_velocity(torch.zeros(1, 3))
        assert _step(stack, 1.0)["success"] is success


@pytest.mark.parametrize(("depth", "success"), [(-0.03, False), (0.0, True), (0.06, True), (0.1, False)])
def test_a_peg_pushed_through_the_hole_is_no_success(peg: Any, depth: float, success: bool) -> None:
    import sapien
    from mani_skill.utils.structs.pose import Pose

    peg.reset(seed=1)
    inner = peg.simulator
    length = inner.peg_half_sizes[0, 0].item()
    inner.peg.set_pose(Pose.create(inner.box_hole_pose.sp * sapien.Pose([depth - length, 0, 0])))
    told = inner.evaluate()
    assert told["peg_head_pos_at_hole"][0, 0].item() == pytest.approx(depth, abs=1e-3)
    assert bool(told["success"]) is success


@pytest.mark.parametrize("name", [STACK, PEG])
def test_points_are_where_the_observation_says(name: str, stack: Any, peg: Any) -> None:
    task, env = get_task(name), stack if name == STACK else peg
    obs, _ = env.reset(seed=3)
    inner = env.simulator
    objects = {"gripper": inner.agent.tcp.pose}
    if name == STACK:
        objects |= {"red cube": inner.cubeA.pose, "green cube": inner.cubeB.pose}
    else:
        objects |= {"peg": inner.peg.pose, "hole": inner.box_hole_pose}
    assert task.points is not None
    assert set(task.points) == set(objects)
    for point, columns in task.points.items():
        np.testing.assert_allclose(obs[list(columns)], objects[point].p[0], atol=1e-6)


def _chunks(name: str, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.rand(count, 1, 2, get_task(name).action_size, generator=generator) - 1.5


def test_a_batch_of_tensors_does_what_the_others_do() -> None:
    """Windows, chunks, clipping, time limit and counts; on a processor, where ManiSkill takes one environment only."""
    task, actions = get_task(STACK), _chunks(STACK, 8)
    sizes = {"context": 3, "chunk": 2}
    batch = BatchedSimulation(simulated(task), 1, max_steps=15, context=3, device="cpu")
    single = vector.SimulatorVector(_limited(task, 15), 1, **sizes)
    torch.testing.assert_close(batch.reset(7), single.reset(7), rtol=0, atol=0)
    for k, action in enumerate(actions):
        ours, theirs = batch.step(action), single.step(action)
        torch.testing.assert_close(ours.final_window, theirs.final_window, rtol=0, atol=0)
        for fact in ("success", "terminated", "done", "env_steps", "episode"):
            assert getattr(ours, fact).tolist() == getattr(theirs, fact).tolist(), fact
        assert ours.done.item() == (k == 7)
    assert ours.env_steps.item() == 1  # fifteen steps are seven chunks and a half
    assert batch.seeds.tolist() == [8]
    assert (ours.window == ours.window[:, :1]).all()
    assert not torch.equal(ours.window, ours.final_window)
    batch.close()
    single.close()


def _limited(task: Any, steps: int) -> Any:
    return replace(task, max_steps=steps)


def test_a_batch_of_tensors_comes_back_where_it_was() -> None:
    actions = _chunks(PEG, 12)
    batch, other = (BatchedSimulation(SIMULATED["peg-insertion-side"], 1, max_steps=20, device="cpu") for _ in "ab")
    batch.reset(3)
    for action in actions[:11]:  # past the end of an episode
        batch.step(action)
    other.restore(batch.state())
    ours, theirs = batch.step(actions[11]), other.step(actions[11])
    torch.testing.assert_close(theirs.window, ours.window, rtol=0, atol=1e-3)  # contacts are found anew
    assert theirs.episode.tolist() == ours.episode.tolist() == [4]
    assert other.next_seed == batch.next_seed
    assert torch.equal(other.steps, batch.steps)
    batch.close()
    other.close()


def test_layouts_of_a_batch_follow_the_seed() -> None:
    batch = BatchedSimulation(SIMULATED["stack-cube"], 1, max_steps=1, device="cpu")
    drawn = []
    for _ in range(2):
        batch.reset(5)
        drawn.append([batch.step(torch.zeros(1, 1, 4)).window[0, 0] for _ in range(3)])
    for a, b in zip(*drawn, strict=True):
        assert torch.equal(a, b)
    assert len({tuple(x.tolist()) for x in drawn[0]}) == 3
    batch.close()


def test_objects_of_a_batch_follow_the_seed_of_a_reset() -> None:
    """Those of ManiSkill's own seeds would be the same in training and in tests."""
    batch, other = (BatchedSimulation(SIMULATED["peg-insertion-side"], 1, max_steps=2, device="cpu") for _ in "ab")

    def shape(window: torch.Tensor) -> list[float]:
        return window[0, -1, 32:35].tolist()  # half the peg's size

    first, second = shape(batch.reset(3)), shape(batch.reset(4))
    assert first != second
    assert shape(other.reset(3)) == shape(batch.reset(3)) == first
    for _ in range(3):  # into the next episode, which begins elsewhere with the same peg
        window = batch.step(torch.zeros(1, 1, 7)).window
    assert batch.seeds.tolist() == [4]
    assert shape(window) == first  # pyright: ignore[reportPossiblyUnboundVariable]
    other.reset(9)
    other.restore(batch.state())
    assert shape(other.step(torch.zeros(1, 1, 7)).final_window) == first
    batch.close()
    other.close()


@pytest.mark.parametrize("name", SIMULATED)
def test_environments_that_build_their_scene_anew_say_so(name: str) -> None:
    from mani_skill.utils.registration import REGISTERED_ENVS

    from policy_decorator.envs.maniskill.rebuilt import Rebuilt

    simulator.load(SIMULATED[name].module)
    made = REGISTERED_ENVS[SIMULATED[name].env_id].cls
    assert issubclass(made, Rebuilt) == SIMULATED[name].objects_vary


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_physics_and_pictures_are_on_the_device_that_was_named(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mani_skill.envs.utils.system.backend import parse_backend_device_id

    told: dict[str, Any] = {}
    monkeypatch.setattr(simulator, "why_not_on_gpu", lambda: None)
    monkeypatch.setattr(
        simulator.gym, "make", lambda *_, **settings: told.update(settings) or SimpleNamespace(unwrapped=0)
    )
    BatchedSimulation(SIMULATED["stack-cube"], 3, max_steps=2, images=True, device=device)
    kind, _, index = device.partition(":")
    assert list(parse_backend_device_id(told["sim_backend"])) == [f"physx_{kind}", index or None]
    assert list(parse_backend_device_id(told["render_backend"])) == [kind, index or None]


def test_simulation_on_a_gpu_needs_one() -> None:
    with pytest.raises(UserError, match="the device is cpu"):
        make_vector(get_task(STACK), 2, simulation="gpu")
    with pytest.raises(UserError, match="adroit/door has no such simulation"):
        make_vector(get_task("adroit/door"), 2, simulation="gpu")


def _with_gpu(why_not: str | None) -> Any:
    return replace(get_task(STACK), why_not_on_gpu=lambda: why_not)


def test_without_physx_on_the_gpu_auto_is_on_the_cpu_and_says_why() -> None:
    broken = _with_gpu("its library could not be downloaded")
    with pytest.warns(UserWarning, match="on the CPU: its library could not be downloaded"):
        assert vector.simulated_on(broken, "cuda", "auto") == "cpu"
    with pytest.raises(UserError, match="not possible: its library could not be downloaded"):
        make_vector(broken, 2, device="cuda", simulation="gpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vector.simulated_on(broken, "cuda", "cpu") == vector.simulated_on(broken, "cpu", "auto") == "cpu"
        assert vector.simulated_on(_with_gpu(None), "cuda", "auto") == "gpu"


@pytest.fixture
def physx(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is asked for in turn, "gpu" and "simulator", where there seems to be a CUDA device."""
    from sapien import physx

    asked: list[str] = []
    simulator.why_not_on_gpu.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(physx, "enable_gpu", lambda: asked.append("gpu"))
    made = SimpleNamespace(unwrapped=SimpleNamespace(obs_mode="state"))
    monkeypatch.setattr(simulator.gym, "make", lambda *_, **__: asked.append("simulator") or made)
    yield asked
    simulator.why_not_on_gpu.cache_clear()


def test_physx_is_told_of_the_gpu_once_before_the_first_simulator(physx: list[str]) -> None:
    get_task(STACK).make_env(None)
    get_task(STACK).make_env(None)
    simulator.make_simulator(SIMULATED["stack-cube"], 5, device="cuda")
    assert physx == ["gpu", "simulator", "simulator", "simulator"]


def test_why_physx_did_not_start_is_remembered(physx: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sapien import physx as library

    def offline() -> None:
        physx.append("gpu")
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(library, "enable_gpu", offline)
    get_task(STACK).make_env(None)  # on the CPU it does without
    for _ in range(2):
        with pytest.raises(UserError, match=r"on the GPU \(ConnectionError: no route to host\)\.$"):
            simulator.make_simulator(SIMULATED["stack-cube"], 5, device="cuda")
    assert physx == ["gpu", "simulator"]


def test_without_a_cuda_device_physx_is_left_alone(physx: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert simulator.why_not_on_gpu() == "there is no CUDA device"
    get_task(STACK).make_env(None)
    assert physx == ["simulator"]


def test_the_gpu_is_taken_where_the_learner_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def record(_: Any, simulated: Any, n: int, **options: Any) -> None:
        made.append({"n": n, **options})

    monkeypatch.setattr(BatchedSimulation, "__init__", record)
    make_vector(_with_gpu(None), 512, chunk=4, device="cuda")
    options = {"max_steps": 200, "context": 1, "ends_at_success": True, "device": torch.device("cuda")}
    assert made == [{"n": 512, **options}]
    env = make_vector(get_task(STACK), 1, device="cpu")
    assert isinstance(env, vector.SimulatorVector)
    env.close()


def test_without_a_driver_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(simulator.NO_DRIVER + ' "cpu"')

    monkeypatch.setattr(simulator.gym, "make", fail)
    with pytest.raises(UserError, match="scripts/sim-drivers"):
        get_task(STACK).make_env(None)


def test_without_maniskill_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for loaded in [m for m in sys.modules if m.startswith("mani_skill.envs")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    with pytest.raises(MissingExtra, match=r'pip install "policy-decorator\[maniskill\]"'):
        get_task(STACK).make_env(None)


@pytest.mark.slow
def test_it_draws(stack: Any) -> None:
    env = get_task(STACK).make_env("rgb_array")
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.dtype == np.uint8
    assert picture.shape == (240, 320, 3)
    assert picture.std() > 10
    env.close()
