"""ManiSkill 3's simulator: how an environment of it is made, and one of them on the CPU as a Gymnasium environment."""

import functools
import importlib
import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_decorator.envs import rendering
from policy_decorator.envs.task import Expert, image_space, installed
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
    state_beside_images: int
    """Joints, their velocities and the gripper: what is known without looking at objects."""
    cameras: tuple[str, ...] = ("base_camera", "hand_camera")
    camera_size: tuple[int, int] = (64, 64)
    """Height and width in pixels (the paper's visual ManiSkill2 tasks)."""
    module: str = "mani_skill.envs"
    """Imported first: it registers `env_id`."""
    planned: str | None = None
    """ManiSkill's environment of the same layouts, for which it has a motion-planning solution."""
    held_actions: tuple[int, ...] = (-1,)
    """As of the task."""
    objects_vary: bool = False
    """Whether episodes differ in the shapes of their objects too, so that a seed builds the scene anew."""
    make_expert: Callable[[], Expert] | None = None
    """Where there is no such solution: a scripted expert of ours, that sees the state"""
    make_privileged_expert: Callable[[Any], Expert] | None = None
    """or also the environment that it is made for."""
    missing_assets: Callable[[], str | None] | None = None
    """What must be downloaded first and is not there, in one line."""


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


def make_simulator(
    simulated: Simulated, num_envs: int = 1, *, device: str = "cpu", images: bool = False, **options: Any
) -> Any:
    """ManiSkill's own environment, without its time limit: tensors (num_envs, ...) in and out.

    Physics is on `device`, "cpu" (one environment only), "cuda" or one of several ("cuda:1"), and so is what `images`
    draws.

    Raises:
        UserError: there is no Vulkan driver, without which ManiSkill cannot even load a robot; or there is no PhysX on
            the GPU.
        MissingExtra: ManiSkill is not installed.
    """
    load(simulated.module)
    if device != "cpu" and (reason := why_not_on_gpu()):
        raise UserError(f"{simulated.env_id} cannot be simulated on the GPU: {reason}.")
    if multiprocessing.parent_process() is None:  # a worker's simulators are on the CPU for good
        why_not_on_gpu()
    settings: dict[str, Any] = {"obs_mode": "state", "render_backend": "none"}
    if images:
        height, width = simulated.camera_size
        size = {"height": height, "width": width}
        settings = {"obs_mode": "rgb+depth", "render_backend": device, "sensor_configs": size}
    settings |= {"control_mode": simulated.control_mode, "reward_mode": "sparse", "num_envs": num_envs}
    settings |= {"sim_backend": f"physx_{device}", **options}
    try:
        env = gym.make(simulated.env_id, disable_env_checker=True, **settings)
    except RuntimeError as error:
        if NO_DRIVER not in str(error):
            raise
        raise UserError(how_to_get_a_driver()) from error
    return env.unwrapped


@functools.cache
def why_not_on_gpu() -> str | None:
    """Why this process cannot simulate on a GPU, None where it can: PhysX is told to, which it allows once.

    And only before anything else is asked of it, such as a simulator on the CPU. So it is told before the first one of
    any kind, wherever there is a CUDA device; the first time, SAPIEN downloads PhysX's library for GPUs.
    """
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        from sapien import physx

        physx.enable_gpu()
    except Exception as error:  # of a download, of opening a library, of starting it
        told = str(error).strip().splitlines() or [""]
        return f"PhysX could not be started on the GPU ({type(error).__name__}: {told[0]})"
    return None


def how_to_get_a_driver() -> str:
    """One line: what ManiSkill lacks where there is no Vulkan driver."""
    return (
        "ManiSkill needs a Vulkan driver, even where nothing is drawn, and finds none. On Debian or Ubuntu: "
        "sudo scripts/sim-drivers (or apt-get install libvulkan1 and mesa-vulkan-drivers 25 or newer)."
    )


@functools.cache
def why_not() -> str | None:
    """What is missing here for ManiSkill to run. A driver is looked for in a process of its own: it may crash."""
    if missing := installed("mani_skill", extra="maniskill"):
        return missing
    probe = [sys.executable, "-c", "import sapien; sapien.render.RenderMaterial()"]
    works = subprocess.run(probe, capture_output=True, timeout=120).returncode == 0
    return None if works else how_to_get_a_driver()


def frame_of(obs: Any, simulated: Simulated) -> Any:
    """What ManiSkill observes as `envs.task` has it: (B, Do), or where there are images a dict of such tensors."""
    if isinstance(obs, Tensor):
        return obs
    from mani_skill.utils.common import flatten_state_dict

    drawn = [obs["sensor_data"][name] for name in simulated.cameras]  # rgb (B, H, W, 3), depth (B, H, W, 1)
    return {
        "state": flatten_state_dict({"agent": obs["agent"], "extra": obs["extra"]}, use_torch=True),
        "rgb": torch.cat([camera["rgb"] for camera in drawn], dim=-1).permute(0, 3, 1, 2).contiguous(),
        "depth": torch.cat([camera["depth"] for camera in drawn], dim=-1).permute(0, 3, 1, 2).contiguous(),  # mm
    }


class Simulation(gym.Env[Any, np.ndarray]):
    """One environment on the CPU: float32 observations; a bool `info["success"]`, also the reward; no time limit.

    A step is hundreds of operations on small tensors, which are a sixth faster in inference mode.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(self, simulator: Any, simulated: Simulated, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.simulator, self.simulated = simulator, simulated
        self.action_space = gym.spaces.Box(-1.0, 1.0, (simulated.action_size,), np.float32)
        if simulator.obs_mode == "state":
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (simulated.obs_size,), np.float32)
        else:
            self.observation_space = image_space(
                simulated.state_beside_images, len(simulated.cameras), *simulated.camera_size, depth=True
            )

    def _frame(self, obs: Any) -> Any:
        frame = frame_of(obs, self.simulated)
        if isinstance(frame, dict):
            return {name: x[0].numpy() for name, x in frame.items()}
        return frame[0].numpy()

    @torch.inference_mode()
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Without a seed, the next layout is drawn from this environment's own generator."""
        super().reset(seed=seed)
        obs, _ = self.simulator.reset(seed=int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._frame(obs), {"success": False}

    @torch.inference_mode()
    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Actions outside [-1, 1] are clipped."""
        obs, _, _, _, info = self.simulator.step(np.clip(action, -1.0, 1.0).astype(np.float32))
        success, failed = bool(info["success"]), bool(info.get("fail", False))
        return self._frame(obs), float(success), failed, False, {"success": success}

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(H, W, 3) uint8."""
        return self.simulator.render()[0].numpy()

    def close(self) -> None:
        self.simulator.close()


def make_env(simulated: Simulated, render_mode: str | None = None, *, images: bool = False) -> Simulation:
    """One environment on the CPU; `render_mode` is None or "rgb_array". Raises what `make_simulator` raises."""
    options: dict[str, Any] = {"images": images}
    if render_mode is not None:
        size = {"width": rendering.WIDTH, "height": rendering.HEIGHT}
        options |= {"render_mode": render_mode, "render_backend": "cpu", "human_render_camera_configs": size}
    return Simulation(make_simulator(simulated, **options), simulated, render_mode)
