"""Learning curves of one run, and of groups of runs side by side; figures are objects, nothing global is touched."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.gridspec import GridSpecFromSubplotSpec

from policy_decorator.errors import UserError
from policy_decorator.reports.facts import Facts, read_facts
from policy_decorator.reports.style import (
    BEHAVIOUR,
    CYCLE,
    FINAL,
    LIGHT,
    REFINED,
    STROKES,
    TRAINING,
    Theme,
    legend_above,
    panel_title,
    plain_axes,
)
from policy_decorator.runlog import RunFolder
from policy_decorator.statistics import wilson

Lines = Sequence[Mapping[str, Any]]
"""Of metrics.jsonl."""
SUCCESS = {"train/success": "while it trains (last 100 episodes)", "eval/full": "evaluation"}
SMALL = (
    ("critic loss", ("loss/critic",)),
    ("actor loss", ("loss/actor",)),
    ("mean Q", ("q/mean",)),
    ("residual norm", ("train/residual_norm", "train/saturation")),
)


def series(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(env_steps, values), both (M,), of the lines where `name` was measured and finite."""
    pairs = [(line["env_steps"], line[name]) for line in lines if line.get(name) is not None]
    table = np.array(pairs, dtype=float).reshape(-1, 2)  # (M, 2)
    return table[:, 0], table[:, 1]


def learning_curves(run: RunFolder | Path, theme: Theme = LIGHT) -> Figure:
    """Success over environment steps with the base's Wilson band, epsilon below, losses beside."""
    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    figure = Figure(figsize=(10, 4.8), layout="constrained", facecolor=theme.ground)
    draw_curves(figure, run, read_facts(run), theme)
    return figure


def draw_curves(figure: Figure | SubFigure, run: RunFolder, facts: Facts, theme: Theme) -> None:
    """`learning_curves` into a figure or a part of one."""
    lines = run.metrics()
    small = [(title, names) for title, names in SMALL if any(series(lines, name)[0].size for name in names)]
    outer = figure.add_gridspec(1, 2 if small else 1, width_ratios=(3.1, 1) if small else (1,))
    left = GridSpecFromSubplotSpec(2, 1, outer[0], height_ratios=(5.5, 1), hspace=0.08)
    success = figure.add_subplot(left[0])
    epsilon = figure.add_subplot(left[1], sharex=success)
    _success_panel(success, run, lines, facts, theme)
    _epsilon_panel(epsilon, lines, theme)
    if small:
        _small_panels(figure, GridSpecFromSubplotSpec(len(small), 1, outer[1]), small, lines, theme)


def _success_panel(axes: Axes, run: RunFolder, lines: Lines, facts: Facts, theme: Theme) -> None:
    plain_axes(axes, theme, percent=True)
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("success rate", color=theme.muted, fontsize=9)
    if facts.base is not None:
        if facts.base.low is not None and facts.base.high is not None:
            axes.axhspan(facts.base.low, facts.base.high, color=theme.base, alpha=0.14, linewidth=0)
        axes.axhline(facts.base.value, color=theme.base, linestyle=(0, (5, 3)), linewidth=1.5, label="base policy")
    x, y = series(lines, "train/success")
    if x.size:
        axes.plot(x, y, color=TRAINING, linewidth=1.2, alpha=0.9, label="training episodes")
    x, y = series(lines, "eval/behaviour")
    if x.size:
        axes.plot(x, y, color=BEHAVIOUR, linewidth=1.4, marker="o", markersize=3, label="evaluated at epsilon")
    _band(axes, run.evaluations("full"))
    x, y = series(lines, "eval/full")
    if x.size:
        axes.plot(x, y, color=REFINED, linewidth=2.2, marker="o", markersize=4, label="full residual")
    final = facts.refined
    if facts.finished and final and facts.refined_step is not None and None not in (final.low, final.high):
        reach = [[max(0.0, final.value - (final.low or 0.0))], [max(0.0, (final.high or 0.0) - final.value)]]
        looks: dict[str, Any] = {"fmt": "D", "markersize": 6, "capsize": 3, "zorder": 5, "color": FINAL}
        axes.errorbar([facts.refined_step], [final.value], yerr=reach, label="final test", **looks)
    if not axes.get_legend_handles_labels()[1]:
        axes.set_xticks([])
        axes.text(0.5, 0.56, "nothing measured yet", transform=axes.transAxes, ha="center", color=theme.muted)
    last = max((line["env_steps"] for line in lines), default=0)
    axes.set_xlim(0, 1.02 * last or 1)
    legend_above(axes, theme)


def _band(axes: Axes, evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Wilson band of the evaluations whose episodes were kept."""
    rows = [
        (line["env_steps"], *wilson(sum(line["success"]), len(line["success"])))
        for line in evaluations
        if line["success"]
    ]
    if len(rows) > 1:
        x, low, high = np.array(sorted(rows), dtype=float).T
        axes.fill_between(x, low, high, color=REFINED, alpha=0.13, linewidth=0)


def _epsilon_panel(axes: Axes, lines: Lines, theme: Theme) -> None:
    plain_axes(axes, theme)
    axes.set_ylim(-0.1, 1.1)
    axes.set_yticks([0, 1])
    axes.set_ylabel("epsilon", color=theme.muted, fontsize=9)
    axes.set_xlabel("environment steps", color=theme.muted, fontsize=9)
    x, y = series(lines, "train/epsilon")
    axes.plot(x, y, color=BEHAVIOUR, linewidth=1.4)
    axes.fill_between(x, 0, y, color=BEHAVIOUR, alpha=0.18, linewidth=0)


def _small_panels(
    figure: FigureBase,
    grid: GridSpecFromSubplotSpec,
    panels: Sequence[tuple[str, tuple[str, ...]]],
    lines: Lines,
    theme: Theme,
) -> None:
    for row, (title, names) in enumerate(panels):
        axes = figure.add_subplot(grid[row])
        for name, colour in zip(names, (REFINED, BEHAVIOUR), strict=False):
            axes.plot(*series(lines, name), color=colour, linewidth=1.2)
        plain_axes(axes, theme, ticks=3)
        if names == ("loss/critic",) and _spans_decades(series(lines, names[0])[1]):
            axes.set_yscale("log")
            axes.minorticks_off()
        if series(lines, names[-1])[0].size and len(names) > 1:
            axes.set_title("saturation", loc="right", fontsize=8, color=BEHAVIOUR, pad=4)
        axes.tick_params(labelsize=7, labelbottom=row == len(panels) - 1)
        panel_title(axes, title, theme, size=8)


def _spans_decades(values: np.ndarray) -> bool:
    return bool(values.size and (values > 0).all() and values.max() > 100 * values.min())


def compare(
    runs: Mapping[str, Sequence[Path | RunFolder]],
    *,
    shade: Literal["range", "std"] = "range",
    theme: Theme = LIGHT,
) -> Figure:
    """Mean over seeds with their range or standard deviation: training success beside evaluation.

    `runs`: label -> the run folders of its seeds, for instance "Policy Decorator" beside "Residual RL".
    Curves end where the shortest seed of their group ends. Raises UserError when there is nothing to compare.
    """
    if not runs or not all(runs.values()):
        raise UserError("Nothing to compare: give at least one run folder for every label.")
    opened = {
        label: [run if isinstance(run, RunFolder) else RunFolder.open(run) for run in group]
        for label, group in runs.items()
    }
    facts = [read_facts(run) for group in opened.values() for run in group]
    bases = [fact.base.value for fact in facts if fact.base is not None]
    curves = {label: [run.metrics() for run in group] for label, group in opened.items()}
    return compare_curves(curves, bases, shade=shade, theme=theme)


def compare_curves(
    curves: Mapping[str, Sequence[Lines]],
    bases: Sequence[float],
    *,
    panels: Mapping[str, str] = SUCCESS,
    shade: Literal["range", "std"] = "range",
    theme: Theme = LIGHT,
) -> Figure:
    """`compare` of metrics: label -> the lines of each seed; `bases` are success rates of the base policy.

    `panels`: metric -> title, left to right. Success has the base's line; others are logarithmic over decades.
    """
    figure = Figure(figsize=(10, 4), layout="constrained", facecolor=theme.ground)
    drawn = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    for axes, (name, title) in zip(drawn, panels.items(), strict=True):
        success = name in SUCCESS
        plain_axes(axes, theme, percent=success)
        axes.set_xlabel("environment steps", color=theme.muted, fontsize=9)
        for k, (label, group) in enumerate(curves.items()):
            look = {"color": CYCLE[k % len(CYCLE)], "linestyle": STROKES[k // len(CYCLE) % len(STROKES)]}
            spread = shade if len(curves) <= len(CYCLE) else "none"  # more would hide one another
            _mean_curve(axes, [series(lines, name) for lines in group], label, look, spread, share=success)
        if success and bases:
            looks: dict[str, Any] = {"color": theme.base, "linestyle": (0, (5, 3)), "linewidth": 1.5}
            axes.axhline(float(np.mean(bases)), label="base policy", **looks)
        values = [series(lines, name)[1] for group in curves.values() for lines in group]
        if not success and _spans_decades(np.concatenate(values)):
            axes.set_yscale("log")
        panel_title(axes, title, theme, size=10)
    if SUCCESS.keys() & panels.keys():
        drawn[0].set_ylabel("success rate", color=theme.muted, fontsize=9)
    handles, labels = drawn[-1].get_legend_handles_labels()
    if handles:
        looks = {"frameon": False, "fontsize": 9, "labelcolor": theme.text}
        longest = max(map(len, labels))
        columns = min(len(labels), 4 if longest < 30 else 3 if longest < 40 else 2)
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, **looks)
    return figure


def mean_over_seeds(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Curves (x, y) of S seeds -> their common steps (M,) and values (S, M), linear between measurements."""
    curves = [(x, y) for x, y in curves if x.size]
    if not curves:
        return np.empty(0), np.empty((0, 0))
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    steps = np.unique(np.concatenate([x for x, _ in curves]))
    steps = steps[(steps >= first) & (steps <= last)]  # (M,)
    return steps, np.stack([np.interp(steps, x, y) for x, y in curves])


def _mean_curve(
    axes: Axes,
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    label: str,
    look: Mapping[str, Any],
    shade: str,
    *,
    share: bool,
) -> None:
    """`share`: values are between 0 and 1, whatever their standard deviation."""
    steps, values = mean_over_seeds(curves)  # (M,), (S, M)
    if not steps.size:
        return
    mean, seeds = values.mean(axis=0), len(values)
    axes.plot(steps, mean, **look, linewidth=2, label=f"{label} ({seeds} seed{'s' * (seeds > 1)})")
    if seeds > 1 and shade != "none":
        spread = values.std(axis=0, ddof=1)
        low, high = (mean - spread, mean + spread) if shade == "std" else (values.min(axis=0), values.max(axis=0))
        if share:
            low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        axes.fill_between(steps, low, high, color=look["color"], alpha=0.16, linewidth=0)
