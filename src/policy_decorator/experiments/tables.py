"""The tables of a study: what was measured stays in summary.csv and curves.csv, whatever machine comes next.

by_method.csv is made of them: means over the seeds.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policy_decorator.disk import atomic_csv
from policy_decorator.runlog import RunFolder
from policy_decorator.statistics import mean_interval

CURVES = ("train/success", "eval/full", "eval/behaviour", "eval/base", "eval/offline", "train/epsilon")
CURVES += ("loss/critic", "sac/temperature", "train/guide_steps")
SUMMARY = (
    "task", "policy", "method", "seed", "base_success", "refined_success", "gain", "gain_low", "gain_high", "fixed",
    "broken", "test_episodes", "env_steps", "decisions", "updates", "base_queries", "wall_seconds", "bound", "horizon",
    "kept_checkpoint_step", "git_revision", "git_dirty", "base_parameters_sha256", "guide_steps",
    "device",
)  # fmt: skip
BY_METHOD = (
    "task", "method", "seeds", "base_success", "refined_success", "gain", "gain_low", "gain_high", "fixed", "broken",
    "test_episodes", "last_success", "training_lowest", "training_last",
)  # fmt: skip
"""Means over seeds, with the 95 % interval of the mean gain: of the paired test, whose episodes are added up; of the
last evaluation of what is learned, whatever checkpoint was kept; and of the training's own episodes, exploration
included, at their lowest point and at the end."""


Key = tuple[str, str, int]  # task, method, seed: the first columns of curves.csv


@dataclass
class Tables:
    """A study's summary.csv and curves.csv, run by run."""

    summaries: dict[Key, list[Any]] = field(default_factory=dict)
    curves: dict[Key, list[tuple[int, str, float]]] = field(default_factory=dict)
    """(environment steps, metric, value)."""

    def __contains__(self, key: Key) -> bool:
        return key in self.summaries

    @classmethod
    def read(cls, folder: Path) -> "Tables":
        """Those in `folder`; empty where there are none yet."""
        if not (folder / "summary.csv").exists():
            return cls()
        tables, base = cls(), SUMMARY.index("task")
        for row in _rows(folder / "summary.csv"):
            row += [""] * (len(SUMMARY) - len(row))  # written before the last columns were thought of
            tables.summaries[row[base], row[SUMMARY.index("method")], int(row[SUMMARY.index("seed")])] = row
        for task, method, seed, steps, metric, value in _rows(folder / "curves.csv"):
            tables.curves.setdefault((task, method, int(seed)), []).append((int(steps), metric, float(value)))
        return tables

    def add(self, key: Key, run: RunFolder) -> None:
        """A finished run, in the place of what is known of it."""
        summary, git = run.summary(), run.provenance().get("git", {})
        summary |= {"task": key[0], "method": key[1]}
        summary |= {"git_revision": git.get("revision"), "git_dirty": git.get("dirty")}
        summary["gain_low"], summary["gain_high"] = summary["gain_ci95"]
        self.summaries[key] = [summary.get(name) for name in SUMMARY]
        self.curves[key] = [
            (line["env_steps"], name, line[name])
            for line in run.metrics()
            for name in CURVES
            if line.get(name) is not None
        ]

    def write(self, folder: Path, order: Sequence[Key]) -> list[list[Any]]:
        """Into `folder`, in this order; returns the lines of curves.csv."""
        curves = [[*key, *point] for key in order for point in self.curves[key]]
        atomic_csv(folder / "summary.csv", SUMMARY, [self.summaries[key] for key in order])
        atomic_csv(folder / "curves.csv", ("task", "method", "seed", "env_steps", "metric", "value"), curves)
        atomic_csv(folder / "by_method.csv", BY_METHOD, self.by_method(order))
        return curves

    def by_method(self, order: Sequence[Key]) -> list[list[Any]]:
        """A line of by_method.csv for every (task, method)."""
        lines = []
        for task, method in dict.fromkeys(key[:2] for key in order):
            keys = [key for key in order if key[:2] == (task, method)]
            base, refined, gains = (
                [float(self.of(key, name)) for key in keys] for name in ("base_success", "refined_success", "gain")
            )
            last = [values[-1] for key in keys if (values := self._values(key, "eval/full"))]
            training = [values for key in keys if (values := self._values(key, "train/success"))]
            ends = [min(values) for values in training], [values[-1] for values in training]
            test = (_mean(base), _mean(refined), *map(_rounded, mean_interval(gains)))
            counts = [sum(int(self.of(key, name)) for key in keys) for name in ("fixed", "broken", "test_episodes")]
            lines.append([task, method, len(keys), *test, *counts, *map(_mean, (last, *ends))])
        return lines

    def _values(self, key: Key, metric: str) -> list[float]:
        return [value for _, name, value in self.curves[key] if name == metric]

    def of(self, key: Key, column: str) -> Any:
        """An entry of summary.csv."""
        return self.summaries[key][SUMMARY.index(column)]

    def lines(self, key: Key) -> list[dict[str, Any]]:
        """A run's curves as its metrics.jsonl has them."""
        return [{"env_steps": steps, metric: value} for steps, metric, value in self.curves[key]]


def _mean(values: Sequence[float]) -> float | str:
    return _rounded(sum(values) / len(values)) if values else ""


def _rounded(value: float) -> float | str:
    """To a hundredth of a percent; an interval that one seed does not have is left empty."""
    return "" if math.isnan(value) else round(value, 4)


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]
