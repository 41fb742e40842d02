"""Tasks that show images: what an observation holds, windows of dicts, and frames that are stored once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_decorator import snapshot
from policy_decorator.decorator import Residual
from policy_decorator.envs import TASKS, get_task, rendering
from policy_decorator.envs.images import FrameNumbers, SeenByCamera, together
from policy_decorator.envs.task import Images, Task, image_space
from policy_decorator.envs.vector import SimulatorVector, make_vector
from policy_decorator.errors import UserError
from policy_decorator.rl.replay import NStep, Replay
from policy_decorator.rollout import Collector

LIBRARY = {"metaworld": "metaworld", "adroit": "gymnasium_robotics", "maniskill": "mani_skill"}
SHOWN = ("adroit/door:rgb", "adroit/pen:rgb", "adroit/hammer:rgb", "adroit/relocate:rgb")
SHOWN += ("metaworld/peg-insert-side:rgb", "maniskill/stack-cube:rgbd", "maniskill/peg-insertion-side:rgbd")


class Counter(gym.Env[Any, np.ndarray]):
    """Shows (seed, t) as state and as the grey of its only picture; over after 2 + seed % 3 steps."""

    observation_space = image_space(2, 1, 4, 4, depth=True)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.seed, self.t = seed or 0, 0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self._obs(), 0.0, False, False, {"success": self.t == 2 + self.seed % 3}

    def _obs(self) -> dict[str, np.ndarray]:
        grey = (10 * self.seed + self.t) % 256
        state, rgb = np.array([self.seed, self.t], np.float32), np.full((3, 4, 4), grey, np.uint8)
        return {"state": state, "rgb": rgb, "depth": np.full((1, 4, 4), 7 * grey, np.int16)}


def make_counter(mode: str | None) -> Counter:
    return Counter()


IMAGES = Images(("eye",), 4, 4, depth=True, state_size=2, make_env=make_counter)
COUNTER = Task("counter", 5, 1, 50, 1.0, "", "", make_counter, images={"rgbd": IMAGES}).with_images("rgbd")


def _grey(frames: Any) -> torch.Tensor:
    """Which frame the pictures say it is."""
    assert (frames["rgb"].flatten(-3) == frames["rgb"][..., :1, 0, 0]).all()
    assert torch.equal(frames["depth"][..., 0, 0, 0], 7 * frames["rgb"][..., 0, 0, 0].short())
    return frames["rgb"][..., 0, 0, 0].long()


class Still:
    context = 2

    def act(self, window: Any) -> torch.Tensor:
        return torch.zeros(len(window), 1, 1)


def _collector(n: int = 3, seed: int = 0) -> Collector:
    env = make_vector(COUNTER, n, context=2)
    return Collector(env, Still(), Residual(0.1), lambda step, episode_step: episode_step < 0, seed=seed)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_window_of_dicts(workers: int) -> None:
    env = make_vector(COUNTER, 3, context=2, workers=workers)
    window: Any = env.reset(0)
    assert window.batch_size == (3, 2)
    assert window["rgb"].dtype == torch.uint8
    assert _grey(window).tolist() == [[0, 0], [10, 10], [20, 20]]
    for _ in range(2):
        out: Any = env.step(torch.zeros(3, 1, 1))
    assert out.done.tolist() == [True, False, False]
    assert _grey(out.final_window).tolist() == [[1, 2], [11, 12], [21, 22]]
    assert _grey(out.window).tolist() == [[30, 30], [11, 12], [21, 22]]
    assert out.window["state"].tolist()[0] == [[3, 0], [3, 0]]
    env.close()


def test_every_frame_has_one_number() -> None:
    env = make_vector(COUNTER, 3, context=2)
    window: Any = env.reset(0)
    known: dict[int, int] = {}
    for _ in range(20):
        for frames in (window[:, -1],):
            for number, grey in zip(frames["frame"].tolist(), _grey(frames).tolist(), strict=True):
                assert known.setdefault(number, grey) == grey
        out: Any = env.step(torch.zeros(3, 1, 1))
        for number, grey in zip(out.final_window["frame"][:, -1].tolist(), _grey(out.final_window)[:, -1].tolist()):  # noqa: B905
            assert number not in known
            known[number] = grey
        window = out.window
    assert sorted(known) == list(range(len(known)))


@pytest.mark.parametrize("n_step", [1, 3])
def test_replay_stores_a_frame_once_and_gives_it_back(n_step: int) -> None:
    collector, replay, nstep = _collector(), Replay(60), NStep(n_step, 0.9)
    for _ in range(50):
        t, out = collector.decide(lambda seen: torch.zeros(len(seen), 1, 1))
        if (ready := nstep.push(t, out.done)) is not None:
            replay.add(ready)
    assert replay.data is not None
    stored: Any = replay.data.obs
    assert set(stored.keys()) == {"state", "frame"}
    assert replay.pictures is not None
    assert len(replay.pictures.stored["rgb"]) == 60 + 60 // 8 + 1
    assert replay.pictures.stored["rgb"].dtype == torch.uint8
    for _ in range(20):
        batch: Any = replay.sample(64)
        for frames in (batch.obs, batch.next_obs):
            seed, t = frames["state"].long().unbind(-1)
            assert torch.equal(_grey(frames), (10 * seed + t) % 256)
        length = 2 + batch.obs["state"][:, 0] % 3
        assert (batch.next_obs["state"][:, 1] - batch.obs["state"][:, 1] == batch.decisions).all()
        assert ((batch.next_obs["state"][:, 1] == length) == batch.terminated.bool()).all()


def test_all_of_a_full_replay_is_sampled_where_episodes_are_long() -> None:
    frames = {"state": torch.arange(40.0)[:, None], "rgb": torch.arange(40).view(-1, 1, 1, 1).byte()}
    replay, zeros = Replay(16), torch.zeros(1)
    for k in range(39):
        obs, after = (together({name: x[i : i + 1] for name, x in frames.items()}, 1) for i in (k, k + 1))
        obs.set("frame", torch.tensor([k])), after.set("frame", torch.tensor([k + 1]))  # pyright: ignore[reportAttributeAccessIssue]
        action = torch.zeros(1, 1, 1)
        replay.add(_transition(obs, action, zeros, after))
    batch: Any = replay.sample(2000)
    assert set(batch.obs["state"][:, 0].tolist()) == set(range(23, 39))
    assert torch.equal(batch.obs["rgb"].flatten().float(), batch.obs["state"].flatten())


def _transition(obs: Any, action: torch.Tensor, zeros: torch.Tensor, after: Any) -> Any:
    from policy_decorator.types import Transition

    return Transition(obs, action, action, zeros, zeros, zeros + 1, after, action)


def test_an_interrupted_run_has_its_frames_again(tmp_path: Path) -> None:
    collector, replay, nstep = _collector(), Replay(40), NStep(3, 0.9)

    def collect(c: Collector, r: Replay, n: NStep, decisions: int) -> None:
        for _ in range(decisions):
            t, out = c.decide(lambda seen: torch.zeros(len(seen), 1, 1))
            if (ready := n.push(t, out.done)) is not None:
                r.add(ready)

    collect(collector, replay, nstep, 17)
    state = {"env": collector.env.state(), "window": collector.window, "replay": replay.state(), "nstep": nstep.state()}
    snapshot.write(tmp_path / "last.pt", state)
    collect(collector, replay, nstep, 5)
    read = snapshot.read(tmp_path / "last.pt", torch.device("cpu"))
    other, again, steps = _collector(seed=99), Replay(40), NStep(3, 0.9)
    other.env.restore(read["env"])
    other.window = read["window"]
    again.restore(read["replay"])
    steps.restore(read["nstep"])
    collect(other, again, steps, 5)
    torch.manual_seed(0)
    ours: Any = replay.sample(50)
    torch.manual_seed(0)
    theirs: Any = again.sample(50)
    for name in ("state", "rgb", "depth", "frame"):
        assert torch.equal(ours.obs[name], theirs.obs[name]), name
        assert torch.equal(ours.next_obs[name], theirs.next_obs[name]), name


def test_numbers_go_on_after_a_reset() -> None:
    numbers, everywhere = FrameNumbers(2), torch.ones(2, dtype=torch.bool)
    window = together({"state": torch.zeros(2, 1, 1)}, 2)
    for expected in ([0, 1], [2, 3]):
        assert numbers(window, everywhere)["frame"][:, 0].tolist() == expected  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert "frame" not in window


def test_names() -> None:
    task = get_task("adroit/door:rgb")
    assert task.name == "adroit/door:rgb"
    assert task.shows is TASKS["adroit/door"].images["rgb"]
    assert (task.obs_size, task.action_size, task.max_steps) == (27, 28, 300)
    assert task.make_expert is None
    with pytest.raises(UserError, match=r"images of adroit/door 'rgbd'.*Known: rgb"):
        get_task("adroit/door:rgbd")
    with pytest.raises(UserError, match="toy/reach-gym 'rgb': there is none"):
        get_task("toy/reach-gym:rgb")


# ---- real simulators ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SHOWN)
def task(request: pytest.FixtureRequest) -> Task:
    library = LIBRARY[request.param.split("/")[0]]
    pytest.importorskip(library, reason=f"{library} is not installed")
    if library == "mani_skill":
        try:
            get_task("maniskill/stack-cube").make_env(None).close()
        except UserError:
            pytest.skip("there is no Vulkan driver (make sim-drivers)")
    elif rendering.renderer() is None:
        pytest.skip("nothing can be rendered here")
    return get_task(request.param)


@pytest.mark.slow
def test_what_is_shown(task: Task) -> None:
    assert task.shows is not None
    shown, flat = task.make_env(None), TASKS[task.name.partition(":")[0]].make_env(None)
    space: Any = shown.observation_space
    obs, _ = shown.reset(seed=3)
    start, _ = flat.reset(seed=3)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, task.action_size)).astype(np.float32)
    first = obs["rgb"]
    for action in actions:
        obs, *_ = shown.step(action)
        start, *_ = flat.step(action)
    assert space.contains(obs)
    size = (task.shows.height, task.shows.width)
    assert obs["rgb"].shape == (3 * len(task.shows.cameras), *size)
    assert obs["state"].shape == (task.obs_size,)
    np.testing.assert_allclose(obs["state"], start[: task.obs_size], atol=1e-6)  # the objects come after the robot
    assert first.reshape(3, -1).std(axis=1).min() > 10  # something is to be seen
    assert (first != obs["rgb"]).mean() > 0.005  # and it moves
    again, _ = shown.reset(seed=3)
    assert np.abs(again["rgb"].astype(int) - first.astype(int)).mean() < 1
    if task.shows.depth:
        _check_depth(shown, again)
    shown.close()
    flat.close()


def _check_depth(env: Any, obs: dict[str, np.ndarray]) -> None:
    """In millimetres: most of what the hand's camera sees is the table, from above."""
    camera = env.simulator._sensors["hand_camera"].camera.get_global_pose()
    height = float(camera.p[0, 2])
    assert obs["depth"].dtype == np.int16
    assert 0.5 * height < np.median(obs["depth"][1]) / 1000 < 1.5 * height


def test_the_camera_draws_at_every_step() -> None:
    class Drawn(gym.Env[np.ndarray, np.ndarray]):
        action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        t = 0

        def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
            return np.arange(5, dtype=np.float32), {"success": False}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            self.t += 1
            return np.arange(5, dtype=np.float32) + self.t, 0.0, False, False, {"success": False}

        def render(self) -> Any:
            return np.full((2, 3, 3), self.t, np.uint8) * np.array([1, 2, 3], np.uint8)

    env = SeenByCamera(Drawn(), 2, 2, 3)
    env.reset(seed=0)
    obs, *_ = env.step(np.zeros(1))
    assert obs["state"].tolist() == [1, 2]
    assert obs["rgb"].shape == (3, 2, 3)
    assert obs["rgb"][:, 0, 0].tolist() == [1, 2, 3]
    assert env.observation_space.contains(obs)


def test_flat_tasks_are_as_they_were() -> None:
    flat = replace(COUNTER, shows=None, make_env=TASKS["toy/reach-gym"].make_env, obs_size=4, action_size=2)
    env = SimulatorVector(flat, 2, context=2)
    assert isinstance(env.reset(0), torch.Tensor)
    env.close()
