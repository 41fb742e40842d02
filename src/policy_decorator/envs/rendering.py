"""MuJoCo pictures off screen: which OpenGL backend works here, and frames of a recorded episode.

gymnasium's MuJoCo viewer reads the environment variable MUJOCO_GL when the first frame is drawn; mujoco
itself reads it at import, but only for a class that the viewer does not use. So it is enough to set it before
the first frame: a process that has already imported mujoco can still render.
"""

import functools
import os
import subprocess
import sys
from typing import Any, Literal, cast

import numpy as np
from gymnasium.error import DependencyNotInstalled

from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

Backend = Literal["egl", "osmesa", "glfw"]

SAME_START = 1e-3
"""What two observations of the same start may differ by: other machines and versions round otherwise."""
WIDTH, HEIGHT = 320, 240  # pixels: without a GPU a frame is drawn by the processor

_ONE_FRAME = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom type="box" size="1 1 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
picture = mujoco.Renderer(model, 32, 32)
picture.update_scene(data)
raise SystemExit(0 if picture.render().max() > 0 else 1)
"""


def renderer() -> Backend | None:
    """The MuJoCo OpenGL backend that draws a picture on this machine, or None.

    A value that the user gave to MUJOCO_GL is the only one tried. Each backend is tried once, in a process of
    its own, because a broken driver ends the process that loads it.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    candidates = (chosen,) if chosen else _candidates()
    return next((cast(Backend, name) for name in candidates if _draws(name)), None)


def use_renderer(backend: Backend | None = None) -> Backend:
    """Sets MUJOCO_GL, by default to what `renderer` finds, for every frame drawn from now on in this process.

    Raises:
        UserError: no backend works here; the message says what to install.
    """
    backend = backend or renderer()
    if backend is None:
        raise UserError(how_to_render())
    os.environ["MUJOCO_GL"] = backend
    return backend


def how_to_render() -> str:
    """One line: how to get rendered videos on this machine."""
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        return f"MUJOCO_GL={chosen} does not draw on this machine. Unset it, or set it to egl or osmesa."
    return (
        "No OpenGL backend of MuJoCo works on this machine. "
        "For rendered videos on Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri"
    )


def render_rollout(task: Task, actions: np.ndarray, seed: int, max_frames: int = 60) -> list[np.ndarray]:
    """Plays `actions` (L, Da) again from `reset(seed)`; at most `max_frames` pictures (H, W, 3) uint8 of it.

    The pictures are spread evenly over the L + 1 moments of the episode and include the first and the last:
    `task.control_hz * (len(frames) - 1) / L` frames a second is real time. A picture took 0.02 to 0.1 s on
    two processor cores without a GPU.

    Raises:
        UserError: the actions have the wrong shape, or nothing can be rendered here.
        MissingExtra: the simulator is not installed.
    """
    if actions.ndim != 2 or actions.shape[1] != task.action_size:
        raise UserError(f"{task.name} takes actions of shape (L, {task.action_size}), not {actions.shape}.")
    if max_frames < 2:
        raise UserError(f"max_frames must be at least 2 (the first and the last moment), not {max_frames}.")
    last = len(actions)
    moments = set(np.linspace(0, last, min(last + 1, max_frames)).round().astype(int).tolist())
    env = task.make_env("rgb_array")
    try:
        env.reset(seed=seed)
        frames = [_picture(env)]
        for moment, action in enumerate(actions, start=1):
            env.step(action)
            if moment in moments:
                frames.append(_picture(env))
    finally:
        env.close()
    return frames


def starts_apart(env: Any, seed: int, seen: Any) -> float:
    """By how much `env` begins elsewhere at `reset(seed)` than where `seen` was seen, a frame or an array (Do,) of it.

    The largest difference of two numbers, of the state where there are pictures; above SAME_START it is another start.
    """
    start, _ = env.reset(seed=seed)
    now, then = (x["state"] if isinstance(x, dict) else x for x in (start, seen))
    return float(np.abs(now - then).max())


def draw_fast(model: Any) -> None:
    """No shadows, mirrors or anti-aliasing in a mujoco.MjModel: far faster without a GPU, same physics."""
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    model.mat_reflectance[:] = 0.0


def _candidates() -> tuple[str, ...]:
    if not sys.platform.startswith("linux"):
        return ("glfw",)
    return ("egl", "osmesa", "glfw") if os.environ.get("DISPLAY") else ("egl", "osmesa")


@functools.cache
def _draws(backend: str) -> bool:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ONE_FRAME],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _picture(env: Any) -> np.ndarray:
    try:
        frame = np.asarray(env.render())
    except DependencyNotInstalled as error:  # which says how to install it
        raise UserError(f"No picture can be drawn: {error}.") from error
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise UserError(f"The environment rendered an array of shape {frame.shape}, not a picture (H, W, 3).")
    return frame
