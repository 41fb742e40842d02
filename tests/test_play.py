"""`pidec play`: films of whole episodes, which need a simulator and something that draws."""

import re
from dataclasses import replace
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from test_cli import pidec

from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs import rendering

TASK = "adroit/hammer"  # its expert is done after 55 steps: 14 pictures


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gymnasium_robotics", reason="gymnasium_robotics is not installed")
    path = tmp_path_factory.mktemp("play") / "demos.h5"
    assert pidec("demos", TASK, "--out", path, "--episodes", "3", "--noise", "0.02").code == 0
    return path


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics", reason="gymnasium_robotics is not installed")
    if rendering.renderer() is None:
        pytest.skip(rendering.how_to_render())
    monkeypatch.setenv("MUJOCO_GL", rendering.use_renderer())


def film(path: Path) -> tuple[float, list[np.ndarray]]:
    with imageio.get_reader(path, format="FFMPEG") as reader:  # type: ignore[arg-type]
        return reader.get_meta_data()["fps"], [np.asarray(frame) for frame in reader]  # type: ignore[attr-defined]


def length(steps: int, fps: float = 25) -> int:
    """Pictures of an episode: every fourth step, the start, and a second of its end."""
    return round(steps / 4) + 1 + round(fps)


@pytest.mark.usefixtures("draws")
def test_a_film_of_the_expert_is_as_fast_as_life(tmp_path: Path) -> None:
    path = tmp_path / "new" / "expert.mp4"
    told = pidec("play", TASK, "--expert", "--episodes", "2", "--seed", "5", "--out", path, "--json").value
    assert [episode["seed"] for episode in told["episodes"]] == [5, 6]
    assert [episode["success"] for episode in told["episodes"]] == [True, True]
    assert told["source"] == "scripted expert"
    fps, frames = film(path)
    assert fps == told["fps"] == 25
    assert len(frames) == sum(length(episode["steps"]) for episode in told["episodes"])
    end = length(told["episodes"][0]["steps"])
    first, last, next_one = (frame[40:].astype(int) for frame in (frames[0], frames[end - 1], frames[end]))
    green = [(picture[..., 1] - picture[..., 0]).mean() for picture in (first, last)]
    assert green[1] > green[0] + 10  # tinted once it succeeded
    assert np.abs(next_one - first).mean() < np.abs(last - first).mean() / 2  # the second begins like the first
    assert [file.name for file in path.parent.iterdir()] == ["expert.mp4"]


@pytest.mark.usefixtures("draws")
def test_demonstrations_are_brought_back_from_their_seeds(demos: Path, tmp_path: Path) -> None:
    stored = Demonstrations.load(demos)
    out = tmp_path / "demos.mp4"
    command = ("play", TASK, "--demos", demos, "--episode", "1", "--episodes", "2", "--fps", "5", "--out", out)
    told = pidec(*command, "--json").value
    expected = zip(stored.seeds[1:].tolist(), stored.lengths[1:].tolist(), strict=True)
    assert told["episodes"] == [{"seed": seed, "steps": steps, "success": True} for seed, steps in expected]
    fps, frames = film(out)
    assert fps == 5
    assert len(frames) == sum(length(steps, fps=5) for steps in stored.lengths[1:].tolist())
    before = out.read_bytes()
    refused = pidec(*command)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert out.read_bytes() == before


@pytest.mark.usefixtures("draws")
def test_episodes_that_cannot_be_brought_back_are_refused(demos: Path, tmp_path: Path) -> None:
    stored, path, out = Demonstrations.load(demos), tmp_path / "d.h5", tmp_path / "x.mp4"
    for wrong, options, reason in [
        (replace(stored, seeds=np.array([7, -1, 8])), ("--episode", "1"), "seeds of .* are unknown.*: pidec demos"),
        (replace(stored, seeds=stored.seeds + 1), (), "begins elsewhere than the demonstration did"),
        (stored, ("--episode", "2", "--episodes", "2"), "has no episode 3: it holds 3"),
        (replace(stored, task="adroit/door"), (), "of 'adroit/door', not of 'adroit/hammer'"),
    ]:
        wrong.save(path)
        refused = pidec("play", TASK, "--demos", path, "--out", out, *options)
        assert refused.code == 2
        assert refused.out == ""
        assert refused.err.count("\n") == 1
        assert re.search(reason, refused.err)
        assert not out.exists()


def test_where_nothing_draws_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics", reason="gymnasium_robotics is not installed")
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    refused = pidec("play", TASK, "--out", tmp_path / "x.mp4")
    assert refused.code == 2
    assert "MUJOCO_GL=nonsense does not draw" in refused.err
    assert list(tmp_path.iterdir()) == []
