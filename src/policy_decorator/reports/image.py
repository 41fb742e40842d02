"""report.png: the headline, the flips and the curves of one run in one picture."""

import io
from typing import Any

from matplotlib.figure import Figure, SubFigure

from policy_decorator.reports.curves import draw_curves
from policy_decorator.reports.facts import Estimate, Facts
from policy_decorator.reports.style import FINAL, FLIPS, LIGHT, REFINED, Theme, count_text
from policy_decorator.runlog import RunFolder

DPI = 150
FLIP_WORDS = {
    "solved": "both succeed",
    "fixed": "fixed",
    "broken": "broken",
    "failed": "both fail",
}


def percent(value: float) -> str:
    """0.375 -> "37.5 %", 1.0 -> "100 %"."""
    return f"{100 * value:.1f}".rstrip("0").rstrip(".") + " %"


def points(value: float) -> str:
    """A difference of rates in percentage points, with its sign: 0.59 -> "+59"."""
    return f"{100 * value:+.1f}".removesuffix(".0").replace("-", "\u2212")


def interval(estimate: Estimate | None, signed: bool = False) -> str:
    """The 95 % interval in words; empty where it is not known."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    if signed:
        return f"95 % interval {points(estimate.low)} to {points(estimate.high)}"
    return f"95 % interval {100 * estimate.low:.1f} to {100 * estimate.high:.1f} %"


def duration(seconds: float | None) -> str:
    """3725 -> "1 h 2 min"."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def draw_report(run: RunFolder, facts: Facts, theme: Theme = LIGHT) -> Figure:
    """The whole of report.png."""
    figure = Figure(figsize=(10, 6.9), layout="constrained", facecolor=theme.ground)
    head, curves = figure.subfigures(2, 1, height_ratios=(2.1, 4.8))
    for part in (head, curves):
        part.set_facecolor(theme.ground)
    _headline(head, facts, theme)
    draw_curves(curves, run, facts, theme)
    return figure


def _headline(part: SubFigure, facts: Facts, theme: Theme) -> None:
    steps = count_text(facts.counts.get("env_steps", 0))
    state = f"{steps} environment steps, {duration(facts.wall_seconds)}"
    state += "" if facts.finished else " so far, unfinished"
    what: dict[str, Any] = {"color": theme.text, "va": "top", "parse_math": False}
    quiet: dict[str, Any] = what | {"color": theme.muted, "fontsize": 9.5}
    part.text(0.025, 0.93, facts.task, fontsize=17, weight="bold", **what)
    part.text(0.025, 0.74, f"{facts.method} on {facts.policy}, seed {facts.seed}    {state}", **quiet)
    columns = (
        ("base policy", facts.base, theme.base, False),
        ("refined" if facts.finished else "refined so far", facts.refined, FINAL, False),
        ("gain, percentage points", facts.gain, REFINED, True),
    )
    for k, (word, estimate, colour, signed) in enumerate(columns):
        left = 0.025 + 0.205 * k
        shown = "\u2013" if estimate is None else (points if signed else percent)(estimate.value)
        part.text(left, 0.52, shown, fontsize=25, weight="bold", **what | {"color": colour})
        part.text(left, 0.22, word, **quiet | {"color": theme.text})
        part.text(left, 0.10, interval(estimate, signed), **quiet | {"fontsize": 8})
    if facts.outcomes:
        _flip_bar(part, facts, theme)


def _flip_bar(part: SubFigure, facts: Facts, theme: Theme) -> None:
    """The paired episodes as one bar, cut by outcome."""
    axes = part.add_axes((0.64, 0.02, 0.34, 0.5))
    axes.set_axis_off()
    n, left = len(facts.outcomes), 0
    axes.set_xlim(0, n)
    axes.set_ylim(0, 1)
    same: dict[str, Any] = {"color": theme.text, "fontsize": 9}
    axes.text(0, 0.97, f"the same {n} episodes, base and refined", va="top", **same)
    for k, (kind, count) in enumerate(facts.flips().items()):
        axes.barh(0.52, count, 0.3, left=left, color=FLIPS[kind])
        axes.barh(0.14, 0.025 * n, 0.12, left=0.265 * k * n, color=FLIPS[kind])
        axes.text((0.265 * k + 0.035) * n, 0.14, f"{FLIP_WORDS[kind]} {count}", va="center", **same | {"fontsize": 8})
        left += count
