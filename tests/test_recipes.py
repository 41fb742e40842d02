"""The study of recipes takes away one part at a time, and says of its curves what they show."""

from dataclasses import asdict

import pytest

from policy_decorator.experiments import recipes
from policy_decorator.experiments.bases import BASES
from policy_decorator.experiments.entry import config
from policy_decorator.experiments.presets import settings

Lines = list[tuple[str, str, int, int, str, float]]


def _flat(value: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, x in value.items():
        found |= _flat(x, f"{prefix}{name}.") if isinstance(x, dict) else {prefix + name: x}
    return found


@pytest.mark.parametrize("task", recipes.WITHOUT_ON)
def test_every_part_is_taken_away_alone_and_left_as_in_the_paper(task: str) -> None:
    entries = {e.label: e for e in recipes.ENTRIES if BASES[e.base].task == task}
    assert set(entries) == {"paper", "fast", *(f"fast without {part}" for part in recipes.WITHOUT)}
    fast, paper = _flat(asdict(config(entries["fast"], 0))), _flat(asdict(config(entries["paper"], 0)))
    for part in recipes.WITHOUT:
        without = _flat(asdict(config(entries[f"fast without {part}"], 0)))
        assert without.pop("train.total_steps") <= fast["train.total_steps"]
        assert without.pop("train.eval_every") % fast["train.eval_every"] == 0  # `fast` is known at its steps
        without.pop("test_episodes")
        (name,) = [name for name in without if without[name] != fast[name]]
        assert without[name] == paper[name]


def test_the_recipes_are_the_presets() -> None:
    for entry in recipes.ENTRIES:
        if entry.label in ("paper", "fast"):
            made, base = config(entry, 0), BASES[entry.base]
            preset = settings(entry.label, base.task, kind=base.policy)
            same = ("n_step", "demo_share", "reward_shift", "standardize_obs", "actor_sees", "base_only_warmup", "sac")
            assert [getattr(made.learn, name) for name in same] == [getattr(preset.learn, name) for name in same]
            if entry.base.startswith("adroit"):  # Table 8, or measured
                assert (made.learn.bound, made.learn.horizon) == (preset.learn.bound, preset.learn.horizon)
    assert not set(recipes.FOUND_ON) & set(recipes.HELD_OUT)


def _lines(task: str, recipe: str, curves: list[list[float]], every: int) -> Lines:
    return [
        (task, recipe, seed, 100 * every * i, "eval/behaviour", value)
        for seed, curve in enumerate(curves)
        for i, value in enumerate(curve)
    ]


def test_steps_are_counted_to_95_percent_of_the_higher_end() -> None:
    task = "metaworld/pick-place-wall"
    fast = [[0.4, 0.3, 0.9, 0.9, 1.0], [0.4, 0.6, 0.9, 1.0, 0.9]]  # mean .4 .45 .9 .95 .95, end .933
    slow = [[0.4, 0.4, 0.5, 0.6, 0.7], [0.4, 0.4, 0.5, 0.6, 0.7]]
    lines = _lines(task, "fast", fast, 5) + _lines(task, "paper", slow, 100)
    lines += [(task, "fast", 0, 5, "eval/full", 1.0)]  # of another measure
    got = recipes.summary(lines)
    row = got["tasks"][task]
    assert row["plateau"] == pytest.approx(2.8 / 3)
    assert row["steps_to_95_percent"] == {"paper": None, "fast": 1_000}  # .9 is 96 % of it
    assert got["steps_ratio_fast_over_paper"] == {task: 10 / 400}
    assert row["ratio_is_an_upper_bound"]
    assert row["fast_lowest_below_base"] == 0
    assert row["fast_lowest_below_base_of_a_seed"] == pytest.approx(0.1)
    assert row["fast_seeds_that_end_below_base"] == 0
    assert got["held_out"] == [task]
    assert got["ends"][task] == pytest.approx({"paper": 0.6, "fast": 2.8 / 3})


def test_parts_are_compared_with_fast_of_the_same_seeds_at_the_same_steps() -> None:
    task, part = "metaworld/assembly", "n-step returns"
    lines = _lines(task, "fast", [[0.4, 0.5, 0.6, 0.7, 1.0], [0.1, 0.1, 0.1, 0.1, 0.1]], 5)
    lines += _lines(task, f"fast without {part}", [[0.4, 0.3, 0.1], [0.2, 0.9, 0.9]], 10)  # the second of another base
    got = recipes.summary(lines)
    means = {name: pytest.approx(value) for name, value in (("with", 0.8), ("without", 0.2))}
    expected = {"seeds": [0], "steps": [1_000, 2_000], **means, "worth": [pytest.approx(0.6)]}
    assert got["parts"] == {task: {part: expected}}
    assert got["parts_over_all_tasks"] == {}  # one run says nothing of its uncertainty
    assert got["ends"][task] == pytest.approx({"fast": (0.35 + 0.4 + 0.55) / 3})
    assert recipes.summary(lines[:0])["tasks"] == {}
    assert recipes.summary(_lines(task, "paper", [[0.4, 0.5]], 5))["tasks"] == {}  # nothing to compare yet


def test_what_a_part_is_worth_is_of_the_runs_of_all_tasks() -> None:
    part, lines = "n-step returns", []
    for task, without in (("metaworld/assembly", [[0.4, 0.3], [0.4, 0.1]]), ("adroit/door", [[0.4, 0.2], [0.4, 0.0]])):
        lines += _lines(task, "fast", [[0.4, 0.5], [0.4, 0.5]], 10)
        lines += _lines(task, f"fast without {part}", without, 10)
    got = recipes.summary(lines)["parts_over_all_tasks"][part]  # worth .2, .4, .3, .5
    half = 3.182 * (0.05 / 3) ** 0.5 / 2  # Student's t of three degrees of freedom
    assert got == pytest.approx({"runs": 4, "mean": 0.35, "low": 0.35 - half, "high": 0.35 + half}, abs=1e-3)


def test_a_recipe_that_falls_is_said_to() -> None:
    fast, paper = [[0.5, 0.2, 0.3, 0.4]] * 2 + [[0.5, 0.5, 0.6, 0.7]], [[0.5, 0.9, 0.9, 0.9]] * 3
    row = recipes.summary(_lines("x", "fast", fast, 1) + _lines("x", "paper", paper, 10))["tasks"]["x"]
    assert row["steps_to_95_percent"] == {"paper": 1_000, "fast": None}
    assert row["steps_ratio_fast_over_paper"] is None
    assert not row["ratio_is_an_upper_bound"]
    assert row["fast_lowest_below_base"] == pytest.approx(0.2)
    assert row["fast_lowest_below_base_of_a_seed"] == pytest.approx(0.3)
    assert row["fast_seeds_that_end_below_base"] == 2
