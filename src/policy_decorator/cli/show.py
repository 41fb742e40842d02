"""Outcomes as tables: what a person reads at the end of a command."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from policy_decorator.reports.facts import Estimate
from policy_decorator.reports.image import duration, interval, percent, points


def facts_table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Two columns, name and value."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def rate_row(name: str, rate: float, ci: Sequence[float]) -> tuple[str, str]:
    """A success rate with its 95 % interval."""
    return name, f"{percent(rate)}   {interval(Estimate(rate, ci[0], ci[1]))}"


def gain_row(gain: float, ci: Sequence[float]) -> tuple[str, str]:
    """A difference of success rates with its 95 % interval."""
    return "gain", f"{points(gain)} points   {interval(Estimate(gain, ci[0], ci[1]), signed=True)}"


def run_table(summary: Mapping[str, Any], folder: Path) -> Table:
    """The end of a refinement, from what it wrote to summary.json."""
    rows = [
        rate_row("base policy", summary["base_success"], summary["base_ci95"]),
        rate_row("refined", summary["refined_success"], summary["refined_ci95"]),
        gain_row(summary["gain"], summary["gain_ci95"]),
        ("episodes", f"{summary['test_episodes']}, the same for both"),
        ("fixed / broken", f"{summary['fixed']} / {summary['broken']}"),
        ("environment steps", f"{summary['env_steps']:,}"),
        ("decisions", f"{summary['decisions']:,}"),
        ("updates", f"{summary['updates']:,}"),
        ("base queries", f"{summary['base_queries']:,}"),
        ("kept from step", f"{summary['kept_checkpoint_step']:,}"),
        ("time", duration(summary["wall_seconds"])),
        ("report", str(folder / "report.html")),
    ]
    return facts_table(f"{summary['task']}: {summary['method']}, seed {summary['seed']}", rows)


def demos_table(about: Mapping[str, Any], path: Path) -> Table:
    """`Demonstrations.describe()` and where they were written."""
    rows = [
        ("source", about["source"]),
        ("episodes", str(about["episodes"])),
        ("steps", f"{about['steps']:,}"),
        ("mean length", f"{about['mean_length']:.1f} steps"),
        ("successful", percent(about["success_rate"])),
        ("actions", "{:.3g} to {:.3g}".format(*about["action_range"])),
        *((name, "{} x {} x {}".format(*shape)) for name, shape in about["pictures"].items()),
        *((name.replace("_", " "), str(value)) for name, value in about["details"].items()),
        ("file", str(path)),
    ]
    return facts_table(f"demonstrations of {about['task']}", rows)
