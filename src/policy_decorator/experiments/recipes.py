"""The study of recipes: `paper`, `fast`, and `fast` without each of its parts, everything else being equal.

What `fast` is was found on `FOUND_ON`; the tasks of `HELD_OUT` were looked at only afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from policy_decorator.experiments.entry import Entry, config
from policy_decorator.statistics import mean_interval

FOUND_ON = (
    "metaworld/peg-insert-side",
    "metaworld/assembly",
    "metaworld/shelf-place",
    "metaworld/push-wall",
    "metaworld/hand-insert",
    "adroit/door",
    "adroit/pen",
)
HELD_OUT = ("metaworld/pick-place-wall", "metaworld/disassemble")

WEAK = {"adroit/door": "adroit/door-weak"}
"""Task -> its base policy, where that is not the one of the task's name."""

PAPER_ON = (
    "metaworld/peg-insert-side",
    "metaworld/assembly",
    "metaworld/push-wall",
    "metaworld/pick-place-wall",
    "adroit/door",
)
"""`paper` takes five times as long as `fast`; on the others `fast` is only compared with its base."""
PAPER_STEPS = {"metaworld": 50_000, "adroit": 80_000}
"""Environment steps after which `paper` is given up, by simulator: half an hour of a core, for batches of 1024."""
FAST_STEPS = {"metaworld": 40_000, "adroit": 80_000}
PARTS_STEPS = {"metaworld": 20_000, "adroit": 30_000}
"""Of `fast` without one of its parts, which is compared with `fast` at the same steps."""
PARTS_EVERY = 10_000
"""Environment steps between two evaluations of such a run."""
PARTS_TEST_EPISODES = 20
PAPER_METAWORLD = {"bound": 0.3, "horizon": 20_000}
"""alpha and H for tasks that are not in the paper: its alpha on most tasks, and an H that leaves `paper` time."""

WITHOUT: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "bound = auto": {},
    "horizon = auto": {},
    "residual penalty": {"sac": {"residual_penalty": 0.0}},
    "the base's action as input": {"learn": {"actor_sees": "obs"}},
    "demonstrations in the batches": {"learn": {"demo_share": 0.0}},
    "n-step returns": {"learn": {"n_step": 1}},
    "LayerNorm in the critics": {"nets": {"critic_layer_norm": False}},
    "reward 0 and 1": {"learn": {"reward_shift": -1.0}},
    "observation statistics": {"learn": {"standardize_obs": False}},
}
"""A part of `fast` -> the settings in which the paper does without it. The two autos take alpha and H of `paper`."""
WITHOUT_PART = "fast without "
WITHOUT_ON = ("metaworld/peg-insert-side", "metaworld/assembly", "metaworld/push-wall", "adroit/door")

LAST = 3
"""Evaluations whose mean is called the end of a curve."""
ROUND = -2
"""Steps are rounded to hundreds: evaluations wait for the end of a round, but for the last one."""


def _simulator(task: str) -> str:
    return task.split("/")[0]


def _entries(task: str) -> list[Entry]:
    simulator, base = _simulator(task), WEAK.get(task, task)
    by_hand: dict[str, Any] = PAPER_METAWORLD if simulator == "metaworld" else {}  # else Table 8
    # bfloat16 where it saves time: no difference beyond the seeds' noise was found (results/bench/learning).
    common: dict[str, Any] = {"nets": {"precision": "auto"}, "run": {"compile": "on", "eval_episodes": 40}}
    paper = Entry(
        base,
        "paper",
        preset="paper",
        total_steps=PAPER_STEPS[simulator],
        train={"eval_every": 10_000, "save_every": 10_000},
        **common,
        **by_hand,
    )
    fast = Entry(base, "fast", preset="fast", total_steps=FAST_STEPS[simulator], train={"eval_every": 5_000}, **common)
    compared = [paper, fast] if task in PAPER_ON else [fast]
    return [*compared, *(_without(fast, part, paper) for part in WITHOUT if task in WITHOUT_ON)]


def _without(fast: Entry, part: str, paper: Entry) -> Entry:
    changes: dict[str, Any] = {name: {**getattr(fast, name), **values} for name, values in WITHOUT[part].items()}
    if part.endswith("= auto"):
        name = part.split()[0]
        changes[name] = getattr(config(paper, seed=0).learn, name)
    simulator = _simulator(fast.base)
    return replace(
        fast,
        label=WITHOUT_PART + part,
        total_steps=PARTS_STEPS[simulator],
        train={"eval_every": PARTS_EVERY},
        run={**fast.run, "test_episodes": PARTS_TEST_EPISODES},
        **changes,
    )


ENTRIES = tuple(entry for task in (*FOUND_ON, *HELD_OUT) for entry in _entries(task))


Curve = dict[int, list[float]]  # environment steps -> the success of every seed


def summary(curves: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What the recipes need and reach, from the lines of curves.csv: (task, recipe, seed, steps, metric, value)."""
    tasks = {
        task: _compared(_curves(curves, task, "paper"), fast) | _beside_base(fast)
        for task in _tasks(curves)
        if (fast := _curves(curves, task, "fast"))
    }
    parts = {task: found for task in tasks if (found := _parts(curves, task))}
    return {
        "metric": "eval/behaviour: validation episodes as the policy would act at that time; mean over the seeds",
        "plateau": f"the higher of the two curves' ends (mean of the last {LAST} evaluations)",
        "held_out": [task for task in tasks if task in HELD_OUT],
        "steps_ratio_fast_over_paper": {
            task: row["steps_ratio_fast_over_paper"] for task, row in tasks.items() if "plateau" in row
        },
        "tasks": tasks,
        "ends": {task: _ends(curves, task) for task in tasks},
        "parts": parts,
        "parts_over_all_tasks": _worth(parts),
    }


def _ends(curves: Sequence[Sequence[Any]], task: str) -> dict[str, float]:
    found = {label: _curves(curves, task, label) for label in ("paper", "fast")}
    return {label: _end(curve) for label, curve in found.items() if curve}


def _parts(curves: Sequence[Sequence[Any]], task: str) -> dict[str, dict[str, Any]]:
    """`fast` with and without each part: mean success at the last steps in common, and the difference seed by seed.

    Runs of another base are left out: trained on another machine, it does otherwise in the episodes before step 0.
    """
    fast, found = _by_seed(curves, task, "fast"), {}
    for part in WITHOUT:
        without = _by_seed(curves, task, WITHOUT_PART + part)
        seeds = [seed for seed in sorted(set(fast) & set(without)) if fast[seed].get(0) == without[seed].get(0)]
        if not seeds:
            continue
        common = set.intersection(*(set(curve[seed]) for curve in (fast, without) for seed in seeds))
        steps = sorted(common - {0})[-LAST:]
        ends = {
            name: np.array([[curve[seed][step] for step in steps] for seed in seeds]).mean(axis=1)  # (seeds,)
            for name, curve in (("with", fast), ("without", without))
        }
        means = {name: float(end.mean()) for name, end in ends.items()}
        found[part] = {"seeds": seeds, "steps": steps, **means, "worth": (ends["with"] - ends["without"]).tolist()}
    return found


def _worth(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Success with every part less that without it: mean and 95 % interval over the runs of all tasks."""
    runs = {part: [x for task in parts.values() if part in task for x in task[part]["worth"]] for part in WITHOUT}
    return {part: {"runs": len(x)} | mean_interval(x)._asdict() for part, x in runs.items() if len(x) > 1}


def _by_seed(curves: Sequence[Sequence[Any]], task: str, recipe: str) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = {}
    for base, label, seed, steps, metric, value in curves:
        if (base, label, metric) == (task, recipe, "eval/behaviour"):
            found.setdefault(seed, {})[round(steps, ROUND)] = value
    return found


def _tasks(curves: Sequence[Sequence[Any]]) -> list[str]:
    return list(dict.fromkeys(row[0] for row in curves))


def _curves(curves: Sequence[Sequence[Any]], task: str, recipe: str) -> Curve:
    found: Curve = {}
    for points in _by_seed(curves, task, recipe).values():
        for steps, value in points.items():
            found.setdefault(steps, []).append(value)
    return dict(sorted(found.items()))


def _end(curve: Curve) -> float:
    return float(np.mean([np.mean(values) for values in list(curve.values())[-LAST:]]))


def _compared(paper: Curve, fast: Curve) -> dict[str, Any]:
    """Steps to 95 % of the plateau. Where `paper` is not there at its last step the ratio is an upper bound."""
    if not paper:
        return {}
    plateau = max(_end(paper), _end(fast))
    steps = {name: _reached(curve, 0.95 * plateau) for name, curve in (("paper", paper), ("fast", fast))}
    most = steps["paper"] or max(paper)
    return {
        "plateau": plateau,
        "steps_to_95_percent": steps,
        "steps_ratio_fast_over_paper": steps["fast"] / most if steps["fast"] else None,
        "ratio_is_an_upper_bound": steps["paper"] is None,
    }


def _beside_base(fast: Curve) -> dict[str, Any]:
    base, after = np.array(fast[0]), np.array([values for step, values in fast.items() if step > 0])
    return {  # base (seeds,), after (evaluations, seeds)
        "base": float(base.mean()),
        "end": _end(fast),
        "fast_lowest_below_base": float(max(0.0, (base.mean() - after.mean(axis=1)).max())),
        "fast_lowest_below_base_of_a_seed": float(max(0.0, (base - after).max())),
        "fast_seeds_that_end_below_base": int((after[-1] < base).sum()),
    }


def _reached(curve: Curve, level: float) -> int | None:
    return next((step for step, values in curve.items() if np.mean(values) >= level), None)
