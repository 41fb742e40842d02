"""bench.json, bench.csv, scaling.csv and scaling.png: each replaced in one move."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from policy_decorator.bench.config import count
from policy_decorator.bench.measure import name_of
from policy_decorator.bench.scaling import COLUMNS, PANELS, Panel
from policy_decorator.disk import atomic_bytes, atomic_csv, atomic_json
from policy_decorator.reports.image import png
from policy_decorator.reports.style import LIGHT, REFINED, Theme, count_text, panel_title, plain_axes

BENCH_COLUMNS = ("measure", "side", "setting", "value", "unit")


def write(out: Path, value: dict[str, Any]) -> list[Path]:
    """All there is to write. Raises UserError where the disk is full or read-only."""
    out.mkdir(parents=True, exist_ok=True)
    atomic_json(out / "bench.json", value)
    atomic_csv(out / "bench.csv", BENCH_COLUMNS, list(_lines(value)))
    written = [out / "bench.json", out / "bench.csv"]
    if rows := value.get("scaling"):
        atomic_csv(out / "scaling.csv", COLUMNS, [[row.get(name) for name in COLUMNS] for row in rows])
        atomic_bytes(out / "scaling.png", png(draw(rows)))
        written += [out / "scaling.csv", out / "scaling.png"]
    return written


def _lines(value: dict[str, Any]) -> Iterator[tuple[str, str, str, Any, str]]:
    for row in value["updates"]:
        how = f"{name_of(row)}, {count(row['threads'], 'thread')}"
        yield "update", "ours", how, row["update_ms"], "ms"
        yield "sample", "ours", how, row["sample_ms"], "ms"
    for row in value["eager"]:
        yield "update", "eager", f"float32, {count(row['threads'], 'thread')}", row["update_ms"], "ms"
    for name, row in value["limit"]["formats"].items():
        yield "products of one update", "limit", f"{name}, {count(row['threads'], 'thread')}", row["ms"], "ms"
    for row in value["loops"]:
        yield "end to end", row["side"], row["label"], row["steps_per_s"], "environment steps/s"
        if row["decisions_per_s"] is not None:
            yield "collection", row["side"], row["label"], row["decisions_per_s"], "decisions/s"
    yield "replay", "ours", "one transition", value["memory"]["bytes_per_transition"], "bytes"
    for name, row in {"best": value["ratios"], **value["ratios_by_precision"]}.items():
        for ratio in ("update_vs_eager", "end_to_end_vs_sb3", "update_vs_limit"):
            yield ratio, "ours", name, row[ratio], "ratio"


def draw(rows: list[dict[str, Any]], theme: Theme = LIGHT) -> Figure:
    """Four panels: milliseconds over size, both logarithmic; sizes that were left out are said below."""
    figure = Figure(figsize=(10, 6.4), layout="constrained", facecolor=theme.ground)
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        _draw_panel(axes, panel, [row for row in rows if row["what"] == panel.what], theme)
    return figure


def _draw_panel(axes: Any, panel: Panel, rows: list[dict[str, Any]], theme: Theme) -> None:
    plain_axes(axes, theme, steps=False)
    axes.set_xscale("log")
    axes.set_yscale("log")
    measured = [row for row in rows if row.get("ms") is not None]
    axes.plot([r["size"] for r in measured], [r["ms"] for r in measured], "o-", color=REFINED, markersize=4)
    axes.xaxis.set_major_formatter(lambda x, _: count_text(x))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.minorticks_off()
    if measured:  # at least a decade, or small noise would look like a trend
        low, high = (pick(r["ms"] for r in measured) for pick in (min, max))
        middle, half = math.sqrt(low * high), max(1.3 * math.sqrt(high / low), math.sqrt(10))
        axes.set_ylim(middle / half, middle * half)
    missing = [count_text(row["size"]) for row in rows if row.get("ms") is None]
    axes.set_xlabel(
        panel.what + (f" ({', '.join(missing)}: left out)" if missing else ""), fontsize=8.5, color=theme.text
    )
    axes.set_ylabel("ms", fontsize=8.5, color=theme.text)
    panel_title(axes, panel.call, theme)
