"""The pictures of a study: one per task with all its methods, or what is named here."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from policy_decorator.experiments.bases import BASES
from policy_decorator.experiments.entry import Entry
from policy_decorator.experiments.tables import Key, Tables
from policy_decorator.reports.curves import SUCCESS, compare_curves


@dataclass(frozen=True)
class Picture:
    """Some of a study's methods side by side."""

    name: str
    """Its file, without `.png`."""
    beginnings: tuple[str, ...]
    """How the labels of its entries begin."""
    panels: Mapping[str, str] = field(default_factory=lambda: SUCCESS)
    """Metric -> title."""


TEMPERATURE = {"sac/temperature": "temperature", "loss/critic": "critic loss"}
NAMED: Mapping[str, tuple[Picture, ...]] = {
    "appendix-f": (
        Picture("f3-cal-ql", ("F.3",)),
        Picture("f4-horizon", ("SAC", "F.4")),
        Picture("f51-critics", ("SAC", "F.5.1")),
        Picture("f52-warm-start", ("F.5.2",)),
        Picture("f52-temperature", ("F.5.2",), TEMPERATURE),
    ),
}
"""Figs. 22 to 27 of the paper."""


def pictures(study: str, entries: Sequence[Entry], tables: Tables, keys: Sequence[Key]) -> Iterator[tuple[str, Figure]]:
    """(file name without suffix, figure) of the runs in `keys`, without pictures of which nothing was run."""
    chosen: list[tuple[str, list[Key], Mapping[str, str]]] = [
        (picture.name, [key for key in keys if key[1].startswith(picture.beginnings)], picture.panels)
        for picture in NAMED.get(study, ())
    ]
    if study not in NAMED:
        tasks = dict.fromkeys(key[0] for key in keys)
        chosen = [(re.sub("[/:]", "-", task), [key for key in keys if key[0] == task], SUCCESS) for task in tasks]
    for name, shown, panels in chosen:
        if shown:
            yield name, _figure(entries, tables, shown, panels)


def _figure(entries: Sequence[Entry], tables: Tables, keys: Sequence[Key], panels: Mapping[str, str]) -> Figure:
    """With a line for the base policy where all methods have the same."""
    names = {key[:2] for key in keys}
    same = len({entry.base for entry in entries if (BASES[entry.base].task, entry.label) in names}) == 1
    bases = [float(tables.of(key, "base_success")) for key in keys] if same else []
    methods = dict.fromkeys(key[1] for key in keys)
    return compare_curves({m: [tables.lines(k) for k in keys if k[1] == m] for m in methods}, bases, panels=panels)
