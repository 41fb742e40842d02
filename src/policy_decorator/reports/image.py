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
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.1, 4.8))
    for part in parts:
        part.set_facecolor(theme.ground)
    _headline(parts[0], facts, theme)
    draw_curves(parts[1], run, facts, theme)
    return figure


def _headline(part: SubFigure, facts: Facts, theme: Theme) -> None:
    def write(x: float, y: float, text: str, size: float, color: str, weight: str = "normal") -> None:
        part.text(x, y, text, fontsize=size, color=color, weight=weight, va="top", parse_math=False)

    write(0.025, 0.94, facts.task, min(17.0, 1000 / len(facts.task)), theme.text, "bold")
    write(0.025, 0.76, f"{facts.subtitle}    {_effort(facts)}".strip(), 9.5, theme.muted)
    columns = (
        ("base policy", facts.base, theme.base, False),
        ("refined" if facts.finished else "refined so far", facts.refined, FINAL, False),
        ("gain, percentage points", facts.gain, REFINED, True),
    )
    for k, (word, estimate, colour, signed) in enumerate(columns):
        left = 0.025 + 0.205 * k
        shown = "\u2013" if estimate is None else (points if signed else percent)(estimate.value)
        write(left, 0.56, shown, 27, colour, "bold")
        write(left, 0.27, word, 9.5, theme.text)
        write(left, 0.15, interval(estimate, signed), 8, theme.muted)
    if facts.outcomes:
        _flip_bar(part, facts, theme)


def _effort(facts: Facts) -> str:
    steps = f"{count_text(facts.counts.get('env_steps', 0))} environment steps"
    took = "" if facts.wall_seconds is None else f", {duration(facts.wall_seconds)}"
    return steps + took + ("" if facts.finished else " so far (unfinished)")


def _flip_bar(part: SubFigure, facts: Facts, theme: Theme) -> None:
    """The paired episodes as one bar, cut by outcome, each with its count below."""
    axes = part.add_axes((0.635, 0.03, 0.345, 0.5))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    n, left = len(facts.outcomes), 0.0
    axes.text(0, 0.99, f"the same {n} episodes, played by both", va="top", color=theme.text, fontsize=9)
    places = (0, 0.31, 0.515, 0.74)  # as wide as the words, not as the counts: those may be zero
    for place, (kind, count) in zip(places, facts.flips().items(), strict=True):
        axes.barh(0.55, count / n, 0.3, left=left, color=FLIPS[kind])
        axes.barh(0.16, 0.022, 0.13, left=place, color=FLIPS[kind])
        words = f"{FLIP_WORDS[kind]} {count}"
        axes.text(place + 0.032, 0.16, words, va="center", color=theme.text, fontsize=7.5)
        left += count / n
