"""Films, key frames and paths: of two rollouts side by side (base left, refined policy right), or one after another.

Frames are uint8 (H, W, 3) RGB; paths are (L, 3) positions in metres. Nothing is rendered here, only drawn.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v2 as imageio
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from policy_decorator.disk import atomic_file
from policy_decorator.errors import UserError
from policy_decorator.reports.image import png
from policy_decorator.reports.style import CYCLE, LIGHT, Theme
from policy_decorator.runlog import atomic_bytes

LABELS = ("base policy", "refined")
OUTCOMES = {True: ("success", (0, 158, 115)), False: ("failed", (213, 94, 0)), None: ("ended", (120, 128, 140))}
GROUND = (23, 28, 36)
HOLD_SECONDS = 1.0

Frames = Sequence[np.ndarray]
Paths = Mapping[str, np.ndarray]
Success = tuple[bool | None, bool | None]


class Scene(NamedTuple):
    """One rollout of a film."""

    frames: Frames
    label: str
    success: bool | None
    """How it ended, None where that is not known."""


def write_side_by_side(
    frames_left: Frames,
    frames_right: Frames,
    path: Path | str,
    fps: float,
    labels: tuple[str, str] = LABELS,
    success: Success = (None, None),
) -> Path:
    """Writes an H.264 (yuv420p, even sizes) film of two rollouts and returns its path.

    The one that ends first holds its last frame, tinted and marked with its outcome; so do both for a second at the
    end. `success` says how each ended, None where that is not known. Raises UserError when there are no frames, a
    frame is not uint8 (H, W, 3), or the film cannot be written.
    """
    sides = (_checked(frames_left, "left"), _checked(frames_right, "right"))
    return _write(_film(sides, fps, labels, success), Path(path), fps)


def write_scenes(scenes: Iterable[Scene], path: Path | str, fps: float) -> Path:
    """Writes a film of rollouts one after another and returns its path; each holds its end for a second.

    Scenes are asked for one by one, so that only one is in memory. Raises as `write_side_by_side`.
    """
    images = (
        image
        for scene in scenes
        for image in _film((_checked(scene.frames, "film"),), fps, (scene.label,), (scene.success,))
    )
    return _write(images, Path(path), fps)


def _write(images: Iterator[np.ndarray], path: Path, fps: float) -> Path:
    settings: dict[str, Any] = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 2, "quality": 7}
    # The index goes first, so that a browser plays before it has read all.
    settings["output_params"] = ["-movflags", "+faststart"]
    try:
        with (
            atomic_file(path) as temporary,
            imageio.get_writer(temporary, format="FFMPEG", mode="I", fps=fps, **settings) as film,  # type: ignore[arg-type]
        ):
            for image in images:
                film.append_data(image)  # type: ignore[attr-defined]
    except OSError as error:
        raise UserError(f"Could not write the film {path}: {error}. Is the disk full or the folder gone?") from error
    return path


def poster(source: Path | str | tuple[Frames, Frames], path: Path | str, *, n: int = 5) -> Path:
    """Writes a PNG strip of `n` key frames, the base above the refined policy, and returns its path.

    `source`: a film of `write_side_by_side`, or the frames (base, refined). Raises UserError as that does.
    """
    if isinstance(source, str | Path):
        film = _read(Path(source))
        rows: list[Frames] = [[frame[:, : frame.shape[1] // 2] for frame in film]]
        rows.append([frame[:, frame.shape[1] // 2 :] for frame in film])
    else:
        sides = (_checked(source[0], "left"), _checked(source[1], "right"))
        size = tuple(max(int(side[0].shape[axis]) for side in sides) for axis in (1, 0))
        rows = [[_pane(frame, size, word, None) for frame in side] for side, word in zip(sides, LABELS, strict=True)]
    moments = np.linspace(0, max(map(len, rows)) - 1, n).round().astype(int)
    picked = [np.concatenate([row[min(k, len(row) - 1)] for k in moments], axis=1) for row in rows]
    atomic_bytes(Path(path), _png_of(np.concatenate(picked, axis=0)))
    return Path(path)


def draw_paths(
    left: Paths,
    right: Paths,
    path_png: Path | str,
    title: str = "",
    labels: tuple[str, str] = LABELS,
    success: Success = (None, None),
    theme: Theme = LIGHT,
) -> Path:
    """Draws the paths of named points (gripper, object, goal), (L, 3) each, of two rollouts in equal axes.

    A circle is where a point starts, a cross where it ends. Returns the path of the PNG.
    Raises UserError when there are no points or a path is not (L, 3) with L >= 1.
    """
    names = list(dict.fromkeys([*left, *right]))
    rows = [np.asarray(points, dtype=float) for points in (*left.values(), *right.values())]
    if not rows or any(row.ndim != 2 or row.shape[1] != 3 or not len(row) for row in rows):
        raise UserError(f"Paths must be (L, 3), got {[row.shape for row in rows]}.")
    everything = np.concatenate(rows)  # (sum L, 3)
    centre = (np.nanmin(everything, axis=0) + np.nanmax(everything, axis=0)) / 2  # (3,)
    reach = max(float(np.nanmax(np.ptp(everything, axis=0))) / 2, 1e-3) * 1.05
    figure = Figure(figsize=(10, 5), layout="constrained", facecolor=theme.ground)
    for k, side in enumerate((left, right)):
        axes: Any = figure.add_subplot(1, 2, k + 1, projection="3d")
        _path_axes(axes, centre, reach, theme)
        word, colour = OUTCOMES[success[k]]
        ended = "" if success[k] is None else f": {word}"
        tone = theme.text if success[k] is None else tuple(channel / 255 for channel in colour)
        axes.set_title(labels[k] + ended, fontsize=11, color=tone, parse_math=False)
        for row, name in enumerate(names):
            if name in side:
                _draw_path(axes, np.asarray(side[name], dtype=float), name, CYCLE[row % len(CYCLE)])
    handles = {text: mark for axes in figure.axes for mark, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False, labelcolor=theme.text
    )
    figure.suptitle(title, fontsize=13, color=theme.text, parse_math=False)
    atomic_bytes(Path(path_png), png(figure))
    return Path(path_png)


def _path_axes(axes: Any, centre: np.ndarray, reach: float, theme: Theme) -> None:
    axes.set_facecolor(theme.ground)
    axes.set_box_aspect((1, 1, 1))
    for name, middle in zip("xyz", centre, strict=True):
        getattr(axes, f"set_{name}lim")(middle - reach, middle + reach)
        getattr(axes, f"set_{name}label")(f"{name} (m)", color=theme.muted, fontsize=8)
    axes.tick_params(colors=theme.muted, labelsize=7)
    axes.locator_params(nbins=5)


def _draw_path(axes: Any, points: np.ndarray, name: str, colour: str) -> None:
    axes.plot(*points.T, color=colour, linewidth=1.8, label=name)
    axes.plot(*points[:1].T, color=colour, marker="o", markersize=5)
    axes.plot(*points[-1:].T, color=colour, marker="X", markersize=8, markeredgecolor="white")


def _checked(frames: Frames, side: str) -> Frames:
    if not len(frames):
        raise UserError(f"There are no frames on the {side}: nothing to film.")
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise UserError(f"Frames must be uint8 (H, W, 3), got {frame.dtype} {frame.shape} on the {side}.")
    return frames


def _film(
    sides: Sequence[Frames], fps: float, labels: Sequence[str], success: Sequence[bool | None]
) -> Iterator[np.ndarray]:
    size = tuple(max(int(side[0].shape[axis]) for side in sides) for axis in (1, 0))
    for k in range(max(map(len, sides)) + max(1, round(HOLD_SECONDS * fps))):
        panes = []
        for frames, label, outcome in zip(sides, labels, success, strict=True):
            over = OUTCOMES[outcome] if k >= len(frames) else None
            panes.append(_pane(frames[min(k, len(frames) - 1)], size, label, over))
        yield np.concatenate(panes, axis=1)


def _pane(
    frame: np.ndarray, size: tuple[int, ...], label: str, over: tuple[str, tuple[int, int, int]] | None
) -> np.ndarray:
    """One side: a label above the frame, which is fitted into `size` (W, H) and tinted once the episode is over."""
    width, height = size
    bar, border = max(24, height // 11), max(2, height // 120)
    picture = Image.fromarray(frame)
    if picture.size != (width, height):
        picture = ImageOps.pad(picture, (width, height), color=GROUND)
    if over is not None:
        picture = Image.blend(picture, Image.new("RGB", picture.size, over[1]), 0.2)
    whole_width, whole_height = width + 2 * border, height + bar + border
    # yuv420p halves both axes: odd sizes get one more row or column of ground.
    pane = Image.new("RGB", (whole_width + whole_width % 2, whole_height + whole_height % 2), GROUND)
    pane.paste(picture, (border, bar))
    draw, font = ImageDraw.Draw(pane), _font(int(bar * 0.58))
    draw.text((2 * border, bar // 2), label, fill=(232, 236, 242), font=font, anchor="lm")
    if over is not None:
        word, colour = over
        left = pane.width - 3 * border - int(draw.textlength(word, font=font)) - bar // 2
        draw.rounded_rectangle((left, border, pane.width - 2 * border, bar - border), bar // 4, fill=colour)
        draw.text((left + bar // 4, bar // 2), word, fill=(255, 255, 255), font=font, anchor="lm")
    return np.asarray(pane)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # The one font that is there wherever matplotlib is.
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), size)


def _read(film: Path) -> list[np.ndarray]:
    try:
        with imageio.get_reader(film, format="FFMPEG") as reader:  # type: ignore[arg-type]
            return [np.asarray(frame) for frame in reader]  # type: ignore[attr-defined]
    except (OSError, RuntimeError) as error:
        raise UserError(f"Could not read the film {film}: {error}") from error


def _png_of(image: np.ndarray) -> bytes:
    return imageio.imwrite("<bytes>", image, format="png")  # type: ignore[return-value]
