"""A film shows the test episode itself, or there is none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policy_decorator import showcase
from policy_decorator.envs.toy import TASKS, BiasedController, Reach
from policy_decorator.evaluation import Comparison, Played, Recorded, run_episodes
from tests.test_hardware import Said

TASK = replace(TASKS["toy/reach-gym"], renders=True)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of films, where there seems to be a renderer."""
    seeds: list[int] = []
    monkeypatch.setattr(showcase, "renderer", lambda: "egl")
    monkeypatch.setattr(showcase, "_render", lambda task, seed, *_: seeds.append(seed) or Path("film.mp4"))
    return seeds


def _comparison() -> Comparison:
    env, policy = Recorded(Reach(4)), BiasedController()
    return Comparison(*(Played(run_episodes(env, policy, 6, 40), env.trajectories) for _ in range(2)))


def test_an_episode_that_its_seed_brings_back_is_filmed(rendered: list[int], tmp_path: Path) -> None:
    assert showcase.film(TASK, tmp_path, _comparison(), Said()) == Path("film.mp4")
    assert rendered == [40]


def test_a_renderer_that_fails_costs_no_more_than_the_film(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(showcase, "renderer", lambda: "egl")
    display, points = Said(), {"point": (0, 1, 0), "goal": (2, 3, 2)}
    make_env = TASK.make_env

    def undrawable(mode: str | None) -> Any:
        if mode is not None:
            raise ModuleNotFoundError("pygame is not installed")
        return make_env(mode)

    task = replace(TASK, make_env=undrawable, points=points)
    assert showcase.film(task, tmp_path, _comparison(), display) == tmp_path / "videos" / "paths.png"
    (line,) = [line for line in display.lines if line.startswith("No film")]
    assert line.endswith("could not be drawn (pygame is not installed).")


@pytest.mark.parametrize("points", [{"point": (0, 1, 0), "goal": (2, 3, 2)}, None])
def test_where_the_seed_leads_elsewhere_paths_are_drawn(points: Any, rendered: list[int], tmp_path: Path) -> None:
    comparison, display = _comparison(), Said()
    for played in (comparison.base, comparison.refined):
        played.trajectories[40].obs[0] = played.trajectories[40].obs[0] + 0.01  # as of a GPU
    shown = showcase.film(replace(TASK, points=points), tmp_path, comparison, display)
    assert rendered == []
    assert shown == (None if points is None else tmp_path / "videos" / "paths.png")
    assert shown is None or shown.stat().st_size > 1000
    (line,) = display.lines
    assert line.startswith("No film: from seed 40")
