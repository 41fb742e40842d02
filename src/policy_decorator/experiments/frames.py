"""What tasks with images show, side by side, for a person to look at: all that can run on this machine.

python -m policy_decorator.experiments.frames --out docs/images/frames.png
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from policy_decorator.envs import TASKS, get_task
from policy_decorator.errors import or_exit

DEPTH_SHOWN = 1500
"""Millimetres from black to white."""


@dataclass(frozen=True)
class FramesConfig:
    out: Path
    """PNG file to write."""
    seed: int = 0
    """Of the episodes whose first frames are shown."""
    metaworld: tuple[str, ...] = ("metaworld/peg-insert-side", "metaworld/assembly")
    """Which of its fifty tasks to show."""


def first_pictures(name: str, seed: int) -> dict[str, np.ndarray]:
    """Camera -> picture of the task `name` ("adroit/door:rgb"): (H, W, 3) uint8, of depth (H, W) millimetres."""
    task = get_task(name)
    assert task.shows is not None
    env = task.make_env(None)
    obs: Any = env.reset(seed=seed)[0]
    env.close()
    pictures: dict[str, np.ndarray] = {}
    for i, camera in enumerate(task.shows.cameras):
        pictures[camera] = obs["rgb"][3 * i : 3 * i + 3].transpose(1, 2, 0)
        if "depth" in obs:
            pictures[f"{camera}, depth"] = obs["depth"][i]
    return pictures


def main(cfg: FramesConfig) -> None:
    from matplotlib.figure import Figure

    others = [name for name, task in TASKS.items() if task.images and not name.startswith("metaworld/")]
    others = [name for name in others if not name.endswith("-source") and not TASKS[name].why_not()]
    names = [f"{name}:{mode}" for name in (*others, *cfg.metaworld) for mode in TASKS[name].images]
    shown = [(n, camera, x) for n in names for camera, x in first_pictures(n, cfg.seed).items()]
    columns = 6
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (name, camera, picture) in zip(axes, shown, strict=False):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=DEPTH_SHOWN if picture.ndim == 2 else 255)
        axis.set_title(f"{name}\n{camera}", fontsize=5)
    for axis in figure.axes:
        axis.set_axis_off()
    figure.savefig(cfg.out, dpi=110)


if __name__ == "__main__":
    or_exit(lambda: main(tyro.cli(FramesConfig)))
