"""One test episode of base and refined policy from the same start, filmed or, without a renderer, drawn."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from policy_decorator.envs.rendering import SAME_START, how_to_render, render_rollout, renderer, starts_apart
from policy_decorator.envs.task import Task
from policy_decorator.evaluation import Comparison, Trajectory
from policy_decorator.progress import Display
from policy_decorator.reports.video import draw_paths, poster, write_side_by_side

NAMES = ("base", "refined")
MAX_FRAMES = 60
SLOWDOWN = 4
"""Films run at a quarter of life's speed: the interesting part of an episode often lasts half a second."""


def film(task: Task, folder: Path, comparison: Comparison, display: Display) -> Path | None:
    """Write `videos/side_by_side.mp4` and a poster of it, or `videos/paths.png` where nothing can be rendered.

    An episode is filmed by playing its actions again from its seed. Where that begins elsewhere than the episode did,
    as after simulation on a GPU, whose layouts follow not the seed alone, the film would show another one: paths then.

    Returns what was written, None for a task without anything to look at. Never fails for lack of a screen or by a
    renderer.
    """
    index = pick(comparison)
    pair = [(played, played.episodes) for played in (comparison.base, comparison.refined)]
    seed = comparison.base.episodes.seed + index
    actions = [_actions(p.trajectories[seed], int(e.env_steps[index])) for p, e in pair]
    success = (bool(pair[0][1].success[index]), bool(pair[1][1].success[index]))
    videos = folder / "videos"
    videos.mkdir(exist_ok=True)
    drawn = task.renders and renderer() is not None
    if drawn and _comes_back(task, seed, comparison.base.trajectories[seed]):
        try:
            return _render(task, seed, actions, success, videos, display)
        except Exception as error:  # of anybody's renderer; the run is to have its report all the same
            display.say(f"No film: {task.name} could not be drawn ({error}).")
    elif drawn:
        display.say(f"No film: from seed {seed} alone {task.name} begins elsewhere than the test episode did.")
    elif task.renders:
        display.say(how_to_render())
    if task.points is None:
        return None
    paths = [_paths(p.trajectories[seed], task.points) for p, _ in pair]
    title = f"{task.name}, test episode {index}"
    return draw_paths(paths[0], paths[1], videos / "paths.png", title, NAMES, success)


def pick(comparison: Comparison) -> int:
    """The test episode to show: one that the refinement fixed, else one that it broke, else the first."""
    base, refined = comparison.base.episodes.success, comparison.refined.episodes.success
    for wanted in (refined & ~base, base & ~refined):
        if wanted.any():
            return int(np.flatnonzero(wanted)[0])
    return 0


def _render(
    task: Task, seed: int, actions: list[np.ndarray], success: tuple[bool, bool], videos: Path, display: Display
) -> Path:
    longest = max(len(a) for a in actions)
    frames: list[list[np.ndarray]] = []
    with display.stage("rendering", len(actions)) as update:
        for done, sequence in enumerate(actions, start=1):
            share = max(2, round(MAX_FRAMES * len(sequence) / longest))  # both films skip the same time per picture
            frames.append(render_rollout(task.flat or task, sequence, seed, max_frames=share))
            update(done)
    fps = max(1.0, task.control_hz / SLOWDOWN * max(map(len, frames)) / longest)
    path = write_side_by_side(frames[0], frames[1], videos / "side_by_side.mp4", fps, NAMES, success)
    poster((frames[0], frames[1]), videos / "poster.png")
    return path


def _comes_back(task: Task, seed: int, played: Trajectory) -> bool:
    """Whether the episode's seed, where films are drawn, leads to where it began."""
    env = task.make_env(None)
    try:
        return starts_apart(env, seed, played.obs[0]) <= SAME_START
    finally:
        env.close()


def _actions(trajectory: Trajectory, steps: int) -> np.ndarray:
    """What the simulator executed, (L, Da): the chunks one after the other, clipped, the last one cut short."""
    return np.clip(np.concatenate(trajectory.actions)[:steps], -1, 1)


def _paths(trajectory: Trajectory, points: Mapping[str, tuple[int, int, int]]) -> dict[str, np.ndarray]:
    obs = np.stack(trajectory.obs)  # (L, Do)
    return {name: obs[:, list(xyz)] for name, xyz in points.items()}
