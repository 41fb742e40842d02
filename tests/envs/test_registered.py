"""Environments that anybody registers with Gymnasium, as tasks."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from policy_decorator import Refined, api, make_env
from policy_decorator.cli import main
from policy_decorator.config import RefineConfig
from policy_decorator.envs import get_task, rendering
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError

FETCH = "gym/gymnasium_robotics:FetchReach-v4"

MODULE = """
import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Valve(gym.Env):
    "Solved where the first action, of [0, 10], is above 7.5; fails where it is below 2.5."

    observation_space = Dict({"b": Box(-9, 9, (2,)), "a": Box(-9, 9, (1,))})
    action_space = Box(np.float32([0, -1]), np.float32([10, 3]))
    told = "success"

    def reset(self, *, seed=None, options=None):
        self.place = seed
        return self.seen([0, 0]), {}

    def step(self, action):
        told = {self.told: action[0] > 7.5}
        return self.seen(action), -1.0, bool(action[0] < 2.5), False, told

    def seen(self, action):
        return {"a": np.float64([self.place]), "b": np.float32(action)}


class Silent(Valve):
    told = "well done"


class Switch(Valve):
    action_space = Discrete(2)


class Blind(Valve):
    observation_space = Dict({"rgb": Box(0, 255, (3, 8, 8), np.uint8)})


class Seen(Valve):
    "Two cameras, one of which has its channels last: the valve's place and where it was turned to, in 1 and 2."

    wrist, front = Box(0, 255, (3, 20, 16), np.uint8), Box(0, 255, (20, 16, 3), np.uint8)
    observation_space = Dict(wrist=wrist, b=Box(-9, 9, (2,)), front=front, a=Box(-9, 9, (1,)))

    def seen(self, action):
        wrist, front = np.zeros((3, 20, 16), np.uint8), np.zeros((20, 16, 3), np.uint8)
        wrist[1, 7, 2], front[7, 2, 1] = 10 * self.place, 20
        return super().seen(action) | {"wrist": wrist, "front": front}


class Squinting(Seen):
    observation_space = Dict(Seen.observation_space.spaces | {"front": Box(0, 255, (20, 20, 3), np.uint8)})


class Dazzled(Seen):
    def seen(self, action):
        return super().seen(action) | {"front": np.zeros((20, 16, 3))}


class Brief(Valve):
    "Says itself that time is up, after three steps, and cannot be stepped after that."

    def reset(self, **options):
        self.steps = 0
        return super().reset(**options)

    def step(self, action):
        assert self.steps < 3
        self.steps += 1
        *told, info = super().step(action)
        return *told[:3], self.steps == 3, info


class Restless(Valve):
    def reset(self, **options):
        super().reset(**options)
        return self.seen(np.random.rand(2)), {}


class Old(Valve):
    def reset(self, **options):
        return super().reset(**options)[0]


class Missing(Valve):
    def step(self, action):
        self.place = np.nan
        return super().step(action)


class Needy(Valve):
    def __init__(self, size):
        self.size = size


for kind in (Valve, Silent, Switch, Blind, Seen, Squinting, Dazzled, Brief, Restless, Old, Missing, Needy):
    gym.register(f"{kind.__name__}-v0", f"valves:{kind.__name__}", max_episode_steps=7)
gym.register("Endless-v0", "valves:Valve")
"""


@pytest.fixture
def valves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "valves.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "valves", raising=False)
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))


@pytest.mark.usefixtures("valves")
def test_what_it_observes_does_and_says() -> None:
    task = get_task("gym/valves:Valve-v0")
    assert (task.obs_size, task.action_size, task.max_steps, task.renders) == (3, 2, 7, False)
    env = make_vector(task, 3, workers=0)
    assert env.reset(4)[:, 0].tolist() == [[4, 0, 0], [5, 0, 0], [6, 0, 0]]
    step = env.step(torch.tensor([[[0.0, 0.0]], [[0.6, 1.0]], [[-2.0, -1.0]]]))
    assert step.final_window[:, 0].tolist() == [[4, 5, 1], [5, 8, 3], [6, 0, -1]]  # in the environment's own units
    assert step.success.tolist() == [False, True, False]
    assert step.terminated.tolist() == [False, True, True]
    steps = [env.step(torch.zeros(3, 1, 2)) for _ in range(6)]
    assert [out.done[0].item() for out in steps] == [False] * 5 + [True]
    assert not steps[-1].terminated[0]


@pytest.mark.usefixtures("valves")
def test_pictures_are_shown_beside_the_vectors() -> None:
    task = get_task("gym/valves:Seen-v0")
    assert (task.obs_size, task.shapes) == (3, {"rgb": (6, 20, 16)})
    env = make_vector(task, 2, context=2, workers=0)
    for window, other in ((env.reset(4), 0), (env.step(torch.zeros(2, 1, 2)).window, 5)):
        seen: Any = window
        assert seen["state"][:, -1].tolist() == [
            [other, other / 5, 4],
            [other, other / 5, 5],
        ]
        assert seen["rgb"].shape == (2, 2, 6, 20, 16)
        assert seen["rgb"].dtype == torch.uint8
        shown = seen["rgb"][:, -1, :, 7, 2]
        assert shown.tolist() == [[0, 40, 0, 0, 20, 0], [0, 50, 0, 0, 20, 0]]
        assert seen["rgb"][:, -1].sum() == shown.sum()
    assert make_env("gym/valves:Seen-v0").reset(seed=4)[0]["rgb"].shape == (6, 20, 16)


@pytest.mark.usefixtures("valves", "unreported")
def test_a_task_with_pictures_is_refined_and_its_policy_acts(
    make_config: Callable[..., RefineConfig], tmp_path: Path
) -> None:
    """The base sees the pictures and turns the valve by 0.4, or 0.6 where they show an odd place."""

    def base(obs: dict[str, torch.Tensor]) -> torch.Tensor:
        odd = (obs["rgb"][:, 1, 7, 2] // 10) % 2
        return torch.stack([0.4 + 0.2 * odd, torch.zeros(len(odd))], dim=-1)

    config = make_config("gym/valves:Seen-v0", total_steps=200, envs=2, replay_capacity=200)
    refined = api.run(config, base, out=tmp_path / "run")
    assert refined.summary["base_success"] == 0.5
    env = make_env("gym/valves:Seen-v0")
    obs, _ = env.reset(seed=3)
    again = Refined.load(tmp_path / "run", policy=base)
    np.testing.assert_allclose(again.act(obs), refined.act(obs), atol=1e-6)


@pytest.mark.usefixtures("valves")
def test_its_own_end_is_the_end() -> None:
    env = make_vector(get_task("gym/valves:Brief-v0"), 2, workers=0)
    env.reset(4)
    steps = [env.step(torch.zeros(2, 1, 2)) for _ in range(3)]
    assert [out.done.tolist() for out in steps] == [[False] * 2, [False] * 2, [True] * 2]
    assert not steps[-1].terminated.any()
    assert steps[-1].window[:, 0].tolist() == [[6, 0, 0], [7, 0, 0]]  # the next episodes
    chunks = make_vector(get_task("gym/valves:Brief-v0"), 1, chunk=5, workers=0)
    chunks.reset(4)
    assert chunks.step(torch.zeros(1, 5, 2)).env_steps.tolist() == [3]


@pytest.mark.usefixtures("valves")
def test_other_bounds_than_ours_are_said() -> None:
    assert "(-1 to 10)" in get_task("gym/valves:Valve-v0").note
    assert get_task(FETCH).note == ""


@pytest.mark.usefixtures("valves")
def test_the_environment_as_policies_see_it() -> None:
    env = make_env("gym/valves:Valve-v0")
    obs, _ = env.reset(seed=4)
    assert obs.tolist() == [4, 0, 0]
    for _ in range(7):
        obs, _, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert obs.tolist() == [4, 5, 1]
    assert (terminated, truncated, info["success"]) == (False, True, False)


@pytest.mark.parametrize(
    ("name", "why"),
    [(object(), "by its name"), ("Valve-v0", "gym/Valve-v0"), ("valves:Valve-v0", "gym/valves:Valve-v0")],
)
def test_what_is_no_name_of_a_task_is_told_how_to_be_one(name: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        api.decorate(np.tanh, name)


@pytest.mark.usefixtures("valves")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Valve-v0", "MODULE:ID"),  # not known before the module is imported
        ("nowhere:Valve-v0", "No module named"),
        ("valves:Valve-v1", "MODULE:ID"),
        ("valves:Endless-v0", "max_episode_steps"),
        ("valves:Switch-v0", "a vector with bounds"),
        ("valves:Blind-v0", "pictures and no vector"),
        ("valves:Squinting-v0", "several sizes"),
        ("valves:Dazzled-v0", r"a reset has shape float64 \(6, 20, 16\), its observation space uint8 \(6, 20, 16\)"),
        ("valves:Silent-v0", "does not say whether it is solved"),
        ("valves:Restless-v0", "begins differently"),
        ("valves:Old-v0", "does not follow Gymnasium's interface.*TypeError"),
        ("valves:Missing-v0", "after a step is not finite"),
        ("valves:Needy-v0", "without arguments"),
    ],
)
def test_what_it_lacks_is_said_at_once(name: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        get_task(f"gym/{name}")


@pytest.mark.usefixtures("valves")
def test_a_module_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)).save("policy.ts")
    evaluate = "evaluate policy.ts --task gym/valves:Valve-v0 --episodes 4 --workers 2 --quiet --json"
    assert main(evaluate.split()) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 4


def _towards_the_goal(obs: np.ndarray) -> np.ndarray:
    """Of Fetch: where the gripper is, where it is to be; badly aimed."""
    return np.concatenate([6 * (obs[..., 3:6] - obs[..., :3]) + 0.15, np.zeros_like(obs[..., :1])], axis=-1)


def test_one_of_gymnasium_robotics_is_drawn() -> None:
    pytest.importorskip("gymnasium_robotics", reason="gymnasium_robotics is not installed")
    if rendering.renderer() is None:
        pytest.skip(rendering.how_to_render())
    frames = rendering.render_rollout(get_task(FETCH), np.ones((3, 4), np.float32), seed=0)
    assert len(frames) == 4
    assert np.abs(frames[-1].astype(int) - frames[0]).max() > 50


@pytest.mark.usefixtures("unreported")
def test_one_of_gymnasium_robotics_is_refined_and_evaluated(
    make_config: Callable[..., RefineConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gymnasium_robotics", reason="gymnasium_robotics is not installed")
    config = make_config(FETCH, total_steps=300, workers=2)
    refined = api.run(config, _towards_the_goal, out=tmp_path / "run", force=True)
    assert refined.summary["base_success"] > 0
    assert refined.summary["task"] == FETCH
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "4", "--workers", "0", "--quiet", "--json"]) == 2
    assert "policy" in capsys.readouterr().err  # the function is not in the folder; the task is found again
