"""Episodes of the four Adroit tasks with the dense rewards that D4RL and DAPG recorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy_decorator.demos.expert_npz import read_expert_npz
from policy_decorator.envs.task import Expert, Task

ADROIT = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "adroit"
NAMES = ("door", "pen", "hammer", "relocate")


def make_dense(name: str) -> Any:
    pytest.importorskip("gymnasium_robotics", reason="gymnasium_robotics is not installed")
    import gymnasium as gym
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    return gym.make(f"AdroitHand{name.capitalize()}-v1", max_episode_steps=-1, disable_env_checker=True).unwrapped


def play(env: Any, seed: int, act: Expert, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations before each action (L, Do), rewards (L,), success after each action (L,) as the simulator says."""
    obs, _ = env.reset(seed=seed)
    observations, rewards, success = [], [], []
    for _ in range(steps):
        observations.append(obs.astype(np.float32))
        obs, reward, _, _, info = env.step(act(observations[-1]))
        rewards.append(float(np.squeeze(reward)))
        success.append(bool(np.all(info["success"])))
    return np.stack(observations), np.array(rewards), np.array(success)


def expert(task: Task) -> Expert:
    name = task.name.removeprefix("adroit/")
    if task.make_expert is not None:
        return task.make_expert()
    file = ADROIT / f"{name}_expert.npz"
    if not file.exists():
        pytest.skip("the Adroit files of ../shared/data are not here")
    return read_expert_npz(file)


def random(task: Task) -> Expert:
    rng = np.random.default_rng(0)
    return lambda _: rng.uniform(-1, 1, task.action_size).astype(np.float32)
