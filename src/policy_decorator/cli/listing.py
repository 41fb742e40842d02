"""`pidec list tasks|policies|methods|presets`: what can be named; no simulator is imported."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.errors import MissingExtra, lookup

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """Options of `pidec list`."""

    kind: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KIND")]
    """tasks, policies, methods or presets."""
    json: Switch = False
    """Print a JSON list instead of a table."""


def tasks() -> Rows:
    """Every task with its sizes, its time limit, its meaning of success, and whether it can run here."""
    from policy_decorator.envs import TASKS

    names = ("name", "obs_size", "action_size", "max_steps", "control_hz", "success", "demos")
    rows = []
    for task in TASKS.values():
        row = {name: getattr(task, name) for name in names} | {
            "expert": bool(task.make_expert or task.make_privileged_expert)
        }
        why_not = task.why_not()
        rows.append(row | {"images": list(task.images), "runs": why_not is None, "why_not": why_not})
    return rows


def policies() -> Rows:
    """The base policies that can be trained, with their default settings."""
    from policy_decorator.base_policies import POLICIES

    return [{"name": p.name, "summary": p.summary, "settings": p.config()} for p in POLICIES.values()]


def methods() -> Rows:
    """The methods of `pidec refine`, and what a run of each is made of with its default settings."""
    from policy_decorator.bench.methods import sample_run
    from policy_decorator.bench.parts import parts_of
    from policy_decorator.methods import METHODS

    rows = []
    for method in METHODS.values():
        try:
            parts = asdict(parts_of(sample_run(method.name)[1]))
        except MissingExtra as missing:  # a library that only this method needs
            parts = {"not here": str(missing)}
        rows.append({"name": method.name, "summary": method.summary, "made_of": parts})
    return rows


def presets() -> Rows:
    """The named settings of `pidec refine`; bound and horizon may depend on task and base policy."""
    from policy_decorator.experiments.presets import PRESETS

    return [
        {"name": preset.name, "summary": preset.summary, "settings": preset.make("any task", "")}
        for preset in PRESETS.values()
    ]


LISTS: Mapping[str, Callable[[], Rows]] = {
    "tasks": tasks,
    "policies": policies,
    "methods": methods,
    "presets": presets,
}
COLUMNS = {"name": "name", "obs_size": "obs", "action_size": "act", "max_steps": "steps", "runs": "here"}
COLUMNS |= {"demos": "demonstrations", "images": "images", "success": "success means", "summary": "summary"}
COLUMNS |= {"made_of": "made of"}
"""What a table shows, and its heading."""
SQUEEZED = {"demos": 10, "success": 10, "summary": 20, "made_of": 25}
"""Those that share the width the others leave, and the least of it with which they are shown."""


def parse(args: list[str]) -> Options:
    """Raises UserError for something that cannot be listed."""
    about = "List what can be named: tasks, policies, methods or presets."
    options = parse_options(Options, "list", about, args)
    lookup("kind of list", options.kind, LISTS)
    return options


def run(options: Options) -> Answer:
    """The list that was asked for."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = LISTS[options.kind]()
    table = Table(box=box.SIMPLE_HEAD)
    shown = [name for name in COLUMNS if name in rows[0]]
    widths = {n: max(len(COLUMNS[n]), *(len(_shown(row[n])) for row in rows)) for n in shown} | SQUEEZED
    for name in ("success", "images"):  # a narrow terminal shows less
        if name in shown and _total(widths, shown) > Console().width:
            shown.remove(name)
    squeezed = [name for name in shown if name in SQUEEZED]
    for name in squeezed:
        widths[name] += (Console().width - _total(widths, shown)) // len(squeezed)
    for name in shown:
        justify = "right" if type(rows[0][name]) is int else "left"
        fixed = name not in ("summary", "made_of")
        table.add_column(
            COLUMNS[name], justify=justify, no_wrap=fixed, overflow="ellipsis" if fixed else "fold", width=widths[name]
        )
    for row in rows:
        table.add_row(*(_shown(row[name]) for name in shown))
    refused = [(row["name"], row["why_not"]) for row in rows if row.get("why_not")]
    reasons = {reason: ", ".join(name for name, why in refused if why == reason) for _, reason in refused}
    table.caption = Text("\n\n".join(f"Not here: {names}. {reason}" for reason, names in reasons.items()))
    table.caption_justify = "left"
    return Answer(rows, table, options.json)


def _total(widths: Mapping[str, int], shown: list[str]) -> int:
    """Of a table with gaps between its columns."""
    return sum(widths[name] + 3 for name in shown)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {part}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
