"""Colours and axes of every figure, for a light and a dark page.

Hues are those of Okabe & Ito 2008 (Color Universal Design), told apart by colour-blind readers.
"""

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

REFINED = "#0a84c6"
BEHAVIOUR = "#e69f00"
TRAINING = "#56b4e9"
FINAL = "#009e73"
CYCLE = ("#0a84c6", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STROKES = ("solid", (0, (1, 1)), "dashdot")
"""Of curves for which there are no colours left."""
FLIPS = {"solved": "#9ad5c3", "fixed": "#009e73", "broken": "#d55e00", "failed": "#a3acb9"}


@dataclass(frozen=True)
class Theme:
    """The colours that follow the page."""

    ground: str
    text: str
    muted: str
    grid: str
    base: str


LIGHT = Theme(ground="#ffffff", text="#1b2430", muted="#667085", grid="#e6e9ee", base="#5b6675")
DARK = Theme(ground="#171c24", text="#e8ecf2", muted="#98a2b3", grid="#2a313c", base="#b4bdca")


def count_text(value: float, _: Any = None) -> str:
    """12500 -> "12.5k", 3e6 -> "3M"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def plain_axes(axes: Axes, theme: Theme, *, percent: bool = False, steps: bool = True, ticks: int = 6) -> None:
    """A quiet grid, no box; x in environment steps, y in percent where asked."""
    axes.set_facecolor(theme.ground)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.grid)
    axes.grid(True, axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=8, length=0)
    if percent:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if steps:
        axes.xaxis.set_major_locator(MaxNLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(count_text))


def panel_title(axes: Axes, text: str, theme: Theme, size: float = 9) -> None:
    """A small title above the left corner."""
    axes.set_title(text, loc="left", fontsize=size, color=theme.muted, pad=4)


def legend_above(axes: Axes, theme: Theme, columns: int = 6) -> None:
    """A frameless legend above the axes, where it hides no curve."""
    if axes.get_legend_handles_labels()[1]:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "borderaxespad": 0.2}
        looks: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": theme.text, "handlelength": 1.6}
        legend = axes.legend(ncols=columns, columnspacing=1.3, **place, **looks)
        # A wide legend must not squeeze the axes; an empty title keeps its height.
        legend.set_in_layout(False)
        axes.set_title(" ", fontsize=8.5, pad=6)
