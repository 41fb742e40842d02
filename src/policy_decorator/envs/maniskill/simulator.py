"""ManiSkill 3's simulator: how an environment of it is made, and one of them on the CPU as a Gymnasium environment."""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from policy_decorator.envs import rendering
from policy_decorator.envs.task import Expert
from policy_decorator.errors import MissingExtra, UserError

NO_DRIVER = "failed to find a rendering device"
"""What SAPIEN says where there is no Vulkan driver."""


@dataclass(frozen=True)
class Simulated:
    """What differs between the tasks."""

    env_id: str
    """As registered with ManiSkill."""
    obs_size: int
    action_size: int
    control_mode: str
    success: str
    points: dict[str, tuple[int, int, int]]
    module: str = "mani_skill.envs"
    """Imported first: it registers `env_id`."""
    planned: str | None = None
    """ManiSkill's environment of the same layouts, for which it has a motion-planning solution."""
    make_expert: Callable[[], Expert] | None = None
    """A scripted expert of ours where there is no such solution."""


def load(module: str) -> None:
    """Import what registers environments with ManiSkill, and keep ManiSkill's notices to itself.

    Raises:
        MissingExtra: ManiSkill is not installed.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("mani_skill", "sapien")):
            raise
        raise MissingExtra("ManiSkill", "maniskill") from error
    logging.getLogger("mani_skill ").setLevel(logging.ERROR)  # its name has a space at the end


def make_simulator(simulated: Simulated, num_envs: int = 1, **options: Any) -> Any:
    """ManiSkill's own environment, without its time limit: tensors (num_envs, ...) in and out.

    Raises:
        UserError: there is no Vulkan driver, without which ManiSkill cannot even load a robot.
        MissingExtra: ManiSkill is not installed.
    """
    load(simulated.module)
    settings: dict[str, Any] = {"obs_mode": "state", "reward_mode": "sparse"}
    settings |= {"control_mode": simulated.control_mode, "num_envs": num_envs, "render_backend": "none", **options}
    try:
        env = gym.make(simulated.env_id, disable_env_checker=True, **settings)
    except RuntimeError as error:
        if NO_DRIVER not in str(error):
            raise
        raise UserError(how_to_get_a_driver()) from error
    return env.unwrapped


def how_to_get_a_driver() -> str:
    """One line: what ManiSkill lacks where there is no Vulkan driver."""
    return (
        "ManiSkill needs a Vulkan driver, even where nothing is drawn, and finds none. On Debian or Ubuntu: "
        "sudo scripts/sim-drivers (or apt-get install libvulkan1 and mesa-vulkan-drivers 25 or newer)."
    )


class Simulation(gym.Env[np.ndarray, np.ndarray]):
    """One environment on the CPU: float32 observations; a bool `info["success"]`, also the reward; no time limit."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(self, simulator: Any, obs_size: int, action_size: int, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs_size,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (action_size,), np.float32)
        self.simulator = simulator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Without a seed, the next layout is drawn from this environment's own generator."""
        super().reset(seed=seed)
        obs, _ = self.simulator.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        return obs[0].numpy(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Actions outside [-1, 1] are clipped."""
        obs, _, _, _, info = self.simulator.step(np.clip(action, -1.0, 1.0).astype(np.float32))
        success, failed = bool(info["success"]), bool(info.get("fail", False))
        return obs[0].numpy(), float(success), failed, False, {"success": success}

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(H, W, 3) uint8."""
        return self.simulator.render()[0].numpy()

    def close(self) -> None:
        self.simulator.close()


def make_env(simulated: Simulated, render_mode: str | None = None) -> Simulation:
    """One environment on the CPU; `render_mode` is None or "rgb_array". Raises what `make_simulator` raises."""
    options: dict[str, Any] = {"sim_backend": "physx_cpu"}
    if render_mode is not None:
        size = {"width": rendering.WIDTH, "height": rendering.HEIGHT}
        options |= {"render_mode": render_mode, "render_backend": "cpu", "human_render_camera_configs": size}
    simulator = make_simulator(simulated, **options)
    return Simulation(simulator, simulated.obs_size, simulated.action_size, render_mode)
