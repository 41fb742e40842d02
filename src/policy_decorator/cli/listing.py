"""`pidec list tasks|policies|methods|presets`: what can be named; no simulator is imported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from policy_decorator.cli import Answer
from policy_decorator.cli.options import Switch
from policy_decorator.cli.options import parse as parse_options
from policy_decorator.errors import lookup

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """Options of `pidec list`."""

    kind: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KIND")]
    """tasks, policies, methods or presets."""
    json: Switch = False
    """Print a JSON list instead of a table."""


def tasks() -> Rows:
    """Every task with its sizes, its time limit and its meaning of success."""
    from policy_decorator.envs import TASKS

    names = ("name", "obs_size", "action_size", "max_steps", "control_hz", "success", "demos")
    return [
        {name: getattr(task, name) for name in names} | {"expert": task.make_expert is not None}
        for task in TASKS.values()
    ]


def policies() -> Rows:
    """The base policies that can be trained, with their default settings."""
    from policy_decorator.base_policies import POLICIES

    return [{"name": p.name, "summary": p.summary, "settings": p.config()} for p in POLICIES.values()]


def methods() -> Rows:
    """The methods of `pidec refine`."""
    from policy_decorator.methods import METHODS

    return [{"name": method.name, "summary": method.summary} for method in METHODS.values()]


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
COLUMNS = {"name": "name", "obs_size": "obs", "action_size": "act", "max_steps": "steps"}
COLUMNS |= {"success": "success means", "summary": "summary"}
"""What a table shows, and its heading."""


def parse(args: list[str]) -> Options:
    """Raises UserError for something that cannot be listed."""
    about = "List what can be named: tasks, policies, methods or presets."
    options = parse_options(Options, "list", about, args)
    lookup("kind of list", options.kind, LISTS)
    return options


def run(options: Options) -> Answer:
    """The list that was asked for."""
    from rich import box
    from rich.table import Table

    rows = LISTS[options.kind]()
    table = Table(box=box.SIMPLE_HEAD)
    shown = [name for name in COLUMNS if name in rows[0]]
    for name in shown:
        justify = "right" if isinstance(rows[0][name], int) else "left"
        wide = max(len(row[name]) for row in rows) if name == "name" else None
        fixed = name != "summary"
        table.add_column(COLUMNS[name], justify=justify, no_wrap=fixed, overflow="ellipsis", min_width=wide)
    for row in rows:
        table.add_row(*(str(row[name]) for name in shown))
    return Answer(rows, table, options.json)
