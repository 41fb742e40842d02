"""The headline of a run, from its summary where it is finished and from its evaluations so far where it is not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy_decorator.runlog import COUNTS, RunFolder
from policy_decorator.statistics import paired_gain, wilson


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; the interval is None where it is not known."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Episodes it was measured on."""


@dataclass(frozen=True)
class Outcome:
    """One episode, played by the base and by the refined policy from the same seed."""

    seed: int
    base: bool
    refined: bool

    @property
    def kind(self) -> str:
        """solved (by both), fixed, broken or failed (by both)."""
        return (("failed", "fixed"), ("broken", "solved"))[self.base][self.refined]


@dataclass(frozen=True)
class Facts:
    """What the top of a report says."""

    task: str
    method: str
    policy: str
    seed: str
    finished: bool
    base: Estimate | None
    refined: Estimate | None
    refined_step: int | None
    """Environment steps at which the refined policy was taken."""
    gain: Estimate | None
    outcomes: tuple[Outcome, ...]
    counts: dict[str, int]
    wall_seconds: float | None

    @property
    def subtitle(self) -> str:
        """Method, policy and seed, as far as they are known."""
        parts = (self.method, self.policy and f"on {self.policy}")
        seed = f"seed {self.seed}" if self.seed else ""
        return ", ".join(filter(None, (" ".join(filter(None, parts)), seed)))

    def flips(self) -> dict[str, int]:
        """Episodes of each kind, in the order in which they are drawn."""
        kinds = [outcome.kind for outcome in self.outcomes]
        return {kind: kinds.count(kind) for kind in ("solved", "fixed", "broken", "failed")}


def read_facts(run: RunFolder) -> Facts:
    """Facts of a run folder, finished or not. Raises UserError where its files are damaged."""
    summary, metrics = run.summary(), run.metrics()
    base, refined = _evaluations(run)
    outcomes = _pair(base, refined)
    last = metrics[-1] if metrics else {}
    step = summary.get("kept_checkpoint_step")
    if step is None and refined is not None:
        step = refined["env_steps"]
    names = {key: _name(key, summary, run.config()) for key in ("task", "method", "policy", "seed")}
    names["task"] = names["task"] or run.path.absolute().name
    return Facts(
        **names,
        finished=bool(summary),
        base=_stated(summary, "base_success", "base_ci95", base) or _rate(base) or _logged(metrics, "eval/base"),
        refined=_stated(summary, "refined_success", "refined_ci95", refined)
        or _rate(refined)
        or _logged(metrics, "eval/full"),
        refined_step=step,
        gain=_stated(summary, "gain", "gain_ci95", refined) or _gain(outcomes),
        outcomes=outcomes,
        counts=_counts(summary, last),
        wall_seconds=summary.get("wall_seconds", last.get("wall_seconds")),
    )


def _evaluations(run: RunFolder) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The refined policy's final (else latest) evaluation, and the base's on the most of the same seeds."""
    refined = next(iter((run.evaluations("final") or run.evaluations("full"))[-1:]), None)
    seeds = set(refined["seeds"]) if refined else set()
    bases = run.evaluations("base")[::-1]  # of equals, `max` takes the first: the latest
    return max(bases, key=lambda line: len(seeds & set(line["seeds"])), default=None), refined


def _pair(base: Mapping[str, Any] | None, refined: Mapping[str, Any] | None) -> tuple[Outcome, ...]:
    if base is None or refined is None:
        return ()
    by_seed = dict(zip(base["seeds"], base["success"], strict=True))
    both = zip(refined["seeds"], refined["success"], strict=True)
    return tuple(Outcome(seed, by_seed[seed], success) for seed, success in both if seed in by_seed)


def _stated(summary: Mapping[str, Any], key: str, ci: str, line: Mapping[str, Any] | None) -> Estimate | None:
    if summary.get(key) is None:
        return None
    low, high = summary.get(ci) or (None, None)
    return Estimate(summary[key], low, high, len(line["seeds"]) if line else None)


def _rate(line: Mapping[str, Any] | None) -> Estimate | None:
    if line is None or not line["success"]:
        return None
    n, successes = len(line["success"]), sum(line["success"])
    return Estimate(successes / n, *wilson(successes, n), n)


def _logged(metrics: Sequence[Mapping[str, Any]], name: str) -> Estimate | None:
    values = [line[name] for line in metrics if line.get(name) is not None]
    return Estimate(values[-1]) if values else None


def _gain(outcomes: Sequence[Outcome]) -> Estimate | None:
    if not outcomes:
        return None
    rows = np.array([(outcome.base, outcome.refined) for outcome in outcomes])  # (N, 2)
    found = paired_gain(rows[:, 0], rows[:, 1])
    return Estimate(found.gain, found.low, found.high, found.n)


def _counts(summary: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, int]:
    """Counts at the end. Training episodes are only in the metrics: the summary may mean those of the test."""
    merged = {name: last.get(name) for name in COUNTS}
    merged |= {name: summary[name] for name in COUNTS if name in summary and merged[name] is None}
    return {name: count for name, count in merged.items() if count is not None}


def _name(key: str, summary: Mapping[str, Any], config: Any) -> str:
    """The summary's word, else the configuration's; empty where neither has a plain one."""
    found = summary.get(key)
    if found is None and isinstance(config, dict):
        found = config.get(key)
    return str(found) if isinstance(found, str | int | float) else ""
