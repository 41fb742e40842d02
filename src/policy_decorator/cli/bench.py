"""`pidec bench`: how fast this machine learns, beside a plain update, Stable-Baselines3 and its own matrix products."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from policy_decorator.bench import results
from policy_decorator.bench.config import QUICK, STEPS_PER_ROUND, BenchConfig
from policy_decorator.bench.measure import bench, best_update, name_of
from policy_decorator.bench.scaling import scale
from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch, display
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.errors import UserError
from policy_decorator.hardware import choose_device

ABOUT = """Measure one update, the training loop from end to end, and what they are compared with: the same update \
written plainly, Stable-Baselines3 with the residual as an environment wrapper, and this machine's matrix products. \
All in turns, in processes of their own. Nothing else should run meanwhile."""

LEAST = {"workers": 0, "seconds": 0.0, "updates_per_step": 1 / STEPS_PER_ROUND}
"""Of numbers that may be other than at least 1."""


@dataclass(frozen=True)
class Options:
    """Options of `pidec bench`."""

    bench: BenchConfig = field(default_factory=BenchConfig)
    """What is measured."""
    quick: Switch = False
    """Few and short repeats, nothing tried first: a look, not a measurement."""
    scaling: Switch = False
    """Measure also how cost grows with environments, base policy, batch and replay."""
    scaling_seconds: float = 60.0
    """About as long for each of the four."""
    out: Path | None = None
    """Folder for bench.json and bench.csv, and for scaling.csv and scaling.png."""
    quiet: Switch = False
    """No progress on stderr."""
    json: Switch = False
    """Print JSON instead of tables."""


def parse(args: list[str]) -> Options:
    """Raises UserError for numbers out of range."""
    default = Options(bench=QUICK if "--quick" in args else BenchConfig())
    options = parse_options(Options, "bench", ABOUT, args, default)
    for name in (f.name for f in fields(BenchConfig)):
        value, least = getattr(options.bench, name), LEAST.get(name, 1)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(n, int | float) and not isinstance(n, bool) and n < least for n in numbers):
            raise UserError(f"--{name.replace('_', '-')} must be at least {least:g}, got {value}.")
    return options


def run(options: Options) -> Answer:
    """Measure, write and show."""
    choose_device(options.bench.device)
    shown = display(options.quiet)
    value = bench(options.bench, shown)
    if options.scaling:
        best, size = best_update(value["updates"]), value["memory"]["bytes_per_transition"]
        how = {"threads": best["threads"], "precision": best["precision"]}
        value["scaling_setting"] = how
        value["scaling"] = scale(
            options.bench, **how, bytes_per_transition=size, display=shown, budget=options.scaling_seconds
        )
    if options.out is not None:
        value["files"] = [str(path) for path in results.write(options.out, value)]
    return Answer(value, tables(value), options.json)


# ---- for a person ---------------------------------------------------------------------------------------------


def tables(value: dict[str, Any]) -> Group:
    """What `bench` and `scale` found."""
    found = [_updates(value), _limit(value), _loops(value), _memory(value), _ratios(value)]
    if "scaling" in value:
        found.append(_scaling(value["scaling"]))
    return Group(*found)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table


def _updates(value: dict[str, Any]) -> Table:
    sizes, cfg = value["sizes"], value["settings"]
    nets = f"{cfg.depth}x{cfg.width}, {cfg.critics} critics, batch {cfg.batch_size}"
    title = f"One update: observation {sizes['obs']}, action {sizes['action']}, {nets}, {value['device']}"
    table = _table(title, "", "threads", "update ms", "best", "sample ms", "updates/s")
    for row in value["updates"]:
        numbers = [f"{row[name]:.2f}" for name in ("update_ms", "update_ms_best", "sample_ms")]
        table.add_row(f"ours, {name_of(row)}", str(row["threads"]), *numbers, f"{row['updates_per_s']:.1f}")
    for row in value["eager"]:
        times = f"{row['update_ms']:.2f}", f"{row['update_ms_best']:.2f}"
        table.add_row("eager, float32", str(row["threads"]), *times)
    return table


def _limit(value: dict[str, Any]) -> Table:
    gigaflops = value["limit"]["flops_per_update"] / 1e9
    table = _table(f"Its matrix products alone: {gigaflops:.2f} GFLOP", "", "threads", "GFLOP/s", "ms")
    for name, row in value["limit"]["formats"].items():
        table.add_row(name, str(row["threads"]), f"{row['flops_per_s'] / 1e9:.0f}", f"{row['ms']:.2f}")
    return table


def _loops(value: dict[str, Any]) -> Table:
    cfg = value["settings"]
    title = f"From end to end: {cfg.env}, {cfg.envs} environments, base {value['base']}, {cfg.updates_per_step:g} "
    table = _table(title + "updates per step", "", "steps/s", "best", "collecting only: decisions/s")
    for row in value["loops"]:
        collected = "" if row["decisions_per_s"] is None else f"{row['decisions_per_s']:.0f}"
        name = f"{row['side']}, {row['label']}"
        table.add_row(name, f"{row['steps_per_s']:.1f}", f"{row['steps_per_s_best']:.1f}", collected)
    for row in value["tried_once"]:
        table.add_row(f"[dim]tried once: {row['side']}, {row['label']}[/]", f"[dim]{row['steps_per_s']:.1f}[/]")
    return table


def _memory(value: dict[str, Any]) -> Table:
    facts, table = value["memory"], _table("Memory", "", "")
    table.add_row("bytes per transition", str(facts["bytes_per_transition"]))
    table.add_row("transitions in 8 GB", f"{facts['transitions_in_8_GB']:,}")
    if missing := facts["missing_for_10_million"]:
        table.add_row("missing for 10,000,000", f"{missing / 1e9:.2f} GB")
    for name, peak in facts["peak_bytes"].items():
        for part, size in peak.items():
            if size:
                table.add_row(f"peak of {name}: {part}", f"{size / 1e6:.0f} MB")
    return table


def _ratios(value: dict[str, Any]) -> Table:
    columns = {"best": value["ratios"], **value["ratios_by_precision"]}
    table = _table(f"Ratios ({value['statistic']})", "", *columns)
    for label, text in RATIOS.items():
        shown = [column[label] for column in columns.values()]
        table.add_row(text, *("-" if x is None else x if isinstance(x, str) else f"{x:.2f}" for x in shown))
    return table


RATIOS = {
    "update_vs_eager": "eager update, one thread / ours",
    "update_vs_eager_at_its_best": "eager update, best threads / ours",
    "end_to_end_vs_sb3": "our steps/s / sb3's",
    "update_vs_limit": "our update / its matrix products",
    "update": "our update is",
    "loop": "our loop is",
    "limit": "products in",
}


def _scaling(rows: list[dict[str, Any]]) -> Table:
    table = _table("Scaling", "", "size", "ms", "")
    for row in rows:
        measured = "ms" in row
        milliseconds, rest = (
            (f"{row['ms']:.3g}", f"{row['per_s']:,.0f} {row['counted']}/s") if measured else ("", row["note"])
        )
        table.add_row(row["what"], f"{row['size']:,}", milliseconds, rest)
    return table
