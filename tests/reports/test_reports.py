"""Reports of made-up run folders: right numbers, nothing from outside, nothing executable, unfinished runs too."""

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from policy_decorator.errors import UserError
from policy_decorator.reports.curves import compare, compare_curves, learning_curves, mean_over_seeds, series
from policy_decorator.reports.facts import read_facts
from policy_decorator.reports.html import write_report
from policy_decorator.reports.image import duration, percent, points
from policy_decorator.reports.style import count_text
from policy_decorator.reports.video import Scene, draw_paths, poster, write_scenes, write_side_by_side
from policy_decorator.runlog import COUNTS, RunFolder
from policy_decorator.statistics import paired_gain, wilson

SEEDS = list(range(500, 600))
BASE = np.arange(100) < 40  # 40 solved
REFINED = (np.arange(100) >= 3) & (np.arange(100) < 95)  # 3 broken, 55 fixed, 5 failed by both


def begin(path: Path, task: str = "PegInsert") -> RunFolder:
    config = {"task": task, "method": "Policy Decorator", "policy": "ACT", "seed": 3, "bound": 0.1}
    run = RunFolder.create(path, config, tensorboard=False)
    run.log_evaluation("base", 0, SEEDS, BASE.tolist(), [50] * 100)
    run.log({"eval/base": 0.4}, dict.fromkeys(COUNTS, 0))
    for k in range(1, 11):
        counts = {"env_steps": 1000 * k, "decisions": 500 * k, "updates": 250 * k, "base_queries": 501 * k}
        metrics: dict[str, float] = {"train/success": 0.4 + 0.05 * k, "train/epsilon": min(1.0, k / 5)}
        metrics |= {"loss/critic": 1 / k, "loss/actor": float("nan") if k == 3 else -k, "q/mean": -10 + k}
        if k % 5 == 0:
            metrics |= {"eval/full": 0.09 * k, "eval/behaviour": 0.08 * k}
            run.log_evaluation("full", 1000 * k, SEEDS[:20], [True] * 10 + [False] * 10, [9] * 20)
        run.log(metrics, {**counts, "episodes": 12 * k})
    return run


def finish(run: RunFolder) -> RunFolder:
    found = paired_gain(BASE, REFINED)
    run.log_evaluation("final", 9000, SEEDS, REFINED.tolist(), [30] * 100)
    summary: dict[str, Any] = {"task": "PegInsert", "method": "Policy Decorator", "policy": "ACT", "seed": 3}
    summary |= {"base_success": 0.40, "base_ci95": wilson(40, 100), "refined_success": 0.92}
    summary |= {"refined_ci95": wilson(92, 100), "gain": found.gain, "gain_ci95": [found.low, found.high]}
    summary |= {"fixed": 55, "broken": 3, "episodes": 100, "env_steps": 10000, "wall_seconds": 3725.0}
    run.write_summary(summary | {"kept_checkpoint_step": 9000})
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = finish(begin(tmp_path_factory.mktemp("runs") / "peg-3"))
    write_side_by_side(frames(4), frames(9), run.path / "videos" / "episode_500.mp4", 10)
    write_report(run.path)
    return run.path


def frames(n: int, height: int = 48, width: int = 65) -> list[np.ndarray]:
    return [np.full((height, width, 3), 20 * (k + 1), np.uint8) for k in range(n)]


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_carries_the_numbers(finished: Path) -> None:
    text = Page((finished / "report.html").read_text()).text
    low, high = wilson(92, 100)
    wanted = ["PegInsert", "Policy Decorator on ACT, seed 3", "40 %", "92 %", "+52", "55 fixed, 3 broken", "1 h 2 min"]
    wanted += [f"{100 * low:.1f} to {100 * high:.1f} %", "10,000", "5,010", "2,500", "both succeed: 37", "both fail: 5"]
    assert [word for word in wanted if word not in text] == []
    assert '"bound": 0.1' in text
    assert "cpu_count" in text
    assert "unfinished" not in text


def test_the_page_needs_nothing_from_outside(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert not re.search(r"https?://|//cdn|@import|<script|<link|url\(", page)
    sources = [attrs.get(key) for _, attrs in Page(page).tags for key in ("src", "srcset", "poster", "href")]
    sources = [source for source in sources if source]
    assert len(sources) == 3  # two themes of curves and one film
    assert all(source.startswith("data:") for source in sources)


def test_the_film_is_embedded_whole(finished: Path) -> None:
    tags = Page((finished / "report.html").read_text()).tags
    source = next(attrs["src"] for tag, attrs in tags if tag == "video")
    assert source is not None
    kind, data = source.split(",", 1)
    assert kind == "data:video/mp4;base64"
    assert base64.b64decode(data) == (finished / "videos" / "episode_500.mp4").read_bytes()


def test_a_large_film_is_linked_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path / "run")
    (run.path / "videos" / 'big "1" #.mp4').write_bytes(b"0" * 11)
    monkeypatch.setattr("policy_decorator.reports.html.VIDEO_BYTES", 10)
    tags = Page(write_report(run.path).read_text()).tags
    assert [attrs["src"] for tag, attrs in tags if tag == "video"] == ["videos/big%20%221%22%20%23.mp4"]


def test_the_flip_strip_has_a_square_an_episode(finished: Path) -> None:
    tags = Page((finished / "report.html").read_text()).tags
    squares = [attrs for tag, attrs in tags if tag == "span" and attrs.get("title")]
    kinds = [(attrs["class"] or "").split()[-1] for attrs in squares]
    assert {kind: kinds.count(kind) for kind in kinds} == {"solved": 37, "fixed": 55, "broken": 3, "failed": 5}
    assert "seed 501: base succeeded, refined failed" in [attrs["title"] for attrs in squares]


def test_the_picture_is_a_png_of_the_promised_size(finished: Path) -> None:
    image = imageio.imread(io.BytesIO((finished / "report.png").read_bytes()))
    assert image.shape[:2] == (1035, 1500)
    assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 50


def test_an_unfinished_run_is_reported_from_its_evaluations(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    facts = read_facts(run)
    assert not facts.finished
    assert facts.base is not None
    assert facts.refined is not None
    assert facts.gain is not None
    assert (facts.base.value, facts.refined.value, facts.refined_step) == (0.4, 0.5, 10000)
    assert facts.gain.value == -0.5  # on the 20 seeds of the evaluation, all of which the base solves
    assert facts.flips() == {"solved": 10, "fixed": 0, "broken": 10, "failed": 0}
    assert facts.counts["episodes"] == 120
    assert "unfinished" in Page(write_report(run.path).read_text()).text


def test_a_run_that_has_just_begun_is_reported(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "fresh", {}, tensorboard=False)
    text = Page(write_report(run.path).read_text()).text
    assert "fresh" in text
    assert "Nothing was logged yet." in text
    assert (run.path / "report.png").stat().st_size > 10_000


def test_pairs_are_matched_by_seed_not_by_place(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {}, tensorboard=False)
    run.log_evaluation("base", 0, [7, 8, 9], [True, False, False], [1, 1, 1])
    run.log_evaluation("base", 0, [1, 2], [True, True], [1, 1])
    run.log_evaluation("final", 5, [9, 7, 4], [True, False, True], [1, 1, 1])
    kinds = {outcome.seed: outcome.kind for outcome in read_facts(run).outcomes}
    assert kinds == {9: "fixed", 7: "broken"}


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=q onerror=y> $\\frac$"
    run = begin(tmp_path / "run", task=evil)
    page = Page(write_report(run.path).read_text())
    assert not [tag for tag, attrs in page.tags if tag == "script" or "onerror" in attrs]
    assert evil in page.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path / "nowhere")


def test_curves_draw_the_measured_points(finished: Path) -> None:
    run = RunFolder.open(finished)
    success = learning_curves(run).axes[0]
    lines = {str(line.get_label()): line for line in success.get_lines()}
    assert np.asarray(lines["full residual"].get_xydata()) == pytest.approx(np.array([[5000, 0.45], [10000, 0.9]]))
    assert set(np.asarray(lines["base policy"].get_ydata())) == {0.4}
    steps, values = series(run.metrics(), "loss/actor")  # the nan of step 3000 is left out
    assert steps.tolist() == [1000, 2000, 4000, 5000, 6000, 7000, 8000, 9000, 10000]
    assert values.tolist() == [-1, -2, -4, -5, -6, -7, -8, -9, -10]


def test_seeds_are_averaged_on_common_steps() -> None:
    first = (np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0]))
    second = (np.array([0.0, 15.0]), np.array([0.0, 3.0]))
    steps, values = mean_over_seeds([first, second, (np.empty(0), np.empty(0))])
    assert steps.tolist() == [0, 10, 15]
    assert values == pytest.approx(np.array([[0, 1, 1.5], [0, 2, 3]]))


def test_compare_sets_groups_side_by_side(finished: Path, tmp_path: Path) -> None:
    other = begin(tmp_path / "other").path
    figure = compare({"Policy Decorator": [finished, other], "Residual RL": [other]}, shade="std")
    for axes in figure.axes:
        labels = [str(line.get_label()) for line in axes.get_lines()]
        assert labels == ["Policy Decorator (2 seeds)", "Residual RL (1 seed)", "base policy"]
    assert figure.axes[0].get_lines()[0].get_ydata()[-1] == pytest.approx(0.9)  # type: ignore[index]
    with pytest.raises(UserError, match="at least one"):
        compare({"Policy Decorator": []})


def test_panels_of_other_metrics_have_their_own_scale_and_no_base() -> None:
    seeds = [[{"env_steps": step, "loss": 10.0**step * k, "train/success": 0.5} for step in range(4)] for k in (1, 3)]
    figure = compare_curves({"a": seeds}, [0.4], panels={"loss": "loss", "train/success": "success"}, shade="std")
    loss, success = figure.axes
    assert (loss.get_yscale(), success.get_yscale()) == ("log", "linear")
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 2]
    band = loss.collections[0].get_paths()[0].vertices
    assert np.asarray(band)[:, 1].max() == pytest.approx(2000 + 1000 * 2**0.5)  # not cut off at 1


def test_the_film_holds_the_last_frame_and_marks_the_outcome(tmp_path: Path) -> None:
    path = write_side_by_side(frames(2), frames(6), tmp_path / "a.mp4", 5, success=(False, True))
    film = [np.asarray(frame) for frame in imageio.get_reader(path, format="FFMPEG")]  # type: ignore
    assert len(film) == 6 + 5  # the longer one and one second
    height, width = film[0].shape[:2]
    assert height % 2 == width % 4 == 0
    left = [frame[height // 2, width // 4].astype(int) for frame in film]
    right = [frame[height // 2, 3 * width // 4].astype(int) for frame in film]
    assert np.abs(left[1] - 40).max() < 8
    assert left[2][0] > left[2][2] + 20  # red once failed
    assert np.abs(left[10] - left[2]).max() < 8
    assert np.abs(right[5] - 120).max() < 8
    assert right[6][1] > right[6][0] + 10  # green once it succeeded
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_scenes_follow_one_another_and_are_asked_for_one_by_one(tmp_path: Path) -> None:
    asked = []

    def scenes() -> Iterator[Scene]:
        for k, success in enumerate((True, None, False)):
            asked.append(k)
            yield Scene(frames(2), f"episode {k}", success)

    path = write_scenes(scenes(), tmp_path / "a.mp4", 3)
    film = [np.asarray(frame) for frame in imageio.get_reader(path, format="FFMPEG")]  # type: ignore
    assert asked == [0, 1, 2]
    assert len(film) == 3 * (2 + 3)  # two frames and one second each
    middle = [frame[frame.shape[0] // 2, frame.shape[1] // 2].astype(int) for frame in film]
    assert np.abs(middle[6] - 40).max() < 8
    assert middle[2][1] > middle[2][0] + 10  # green
    assert middle[12][0] > middle[12][2] + 20  # red
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    before = path.read_bytes()
    for bad in ([], [Scene([np.zeros((4, 4, 3))], "no uint8", None)]):
        with pytest.raises(UserError, match=r"rames|Could not write"):
            write_scenes(bad, path, 3)
        assert path.read_bytes() == before


def test_sides_of_unequal_size_are_fitted(tmp_path: Path) -> None:
    path = write_side_by_side(frames(1, 31, 33), frames(1, 64, 64), tmp_path / "b.mp4", 2)
    assert path.stat().st_size > 500


@pytest.mark.parametrize("bad", [[], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3))]])
def test_what_is_no_frame_is_refused(tmp_path: Path, bad: list[np.ndarray]) -> None:
    with pytest.raises(UserError, match="rames"):
        write_side_by_side(frames(1), bad, tmp_path / "c.mp4", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_film_into_a_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Could not write"):
        write_side_by_side(frames(1), frames(1), tmp_path / "no" / "d.mp4", 5)


def test_the_poster_shows_five_moments_of_both(tmp_path: Path) -> None:
    film = write_side_by_side(frames(9), frames(9), tmp_path / "a.mp4", 5)
    height, width = imageio.imread(poster(film, tmp_path / "film.png")).shape[:2]
    strip = imageio.imread(poster((frames(9), frames(5)), tmp_path / "frames.png"))
    assert strip.shape[:2] == (height, width)
    columns = [strip[3 * height // 8, width * (2 * k + 1) // 10, 0] for k in range(5)]
    assert columns == [20, 60, 100, 140, 180]  # frames 0, 2, 4, 6, 8
    below = [strip[7 * height // 8, width * (2 * k + 1) // 10, 0] for k in range(5)]
    assert below == [20, 60, 100, 100, 100]  # the shorter one holds its last frame


def test_paths_are_drawn_and_checked(tmp_path: Path) -> None:
    path = np.linspace([0, 0, 0], [1, 2, 3], 10)
    png = draw_paths({"gripper": path}, {"gripper": path, "goal": path[-1:]}, tmp_path / "p.png", "$x_")
    assert imageio.imread(png).shape[:2] == (750, 1500)
    for bad in ({}, {"gripper": path[:, :2]}, {"gripper": path[:0]}):
        with pytest.raises(UserError, match=r"\(L, 3\)"):
            draw_paths(bad, {}, tmp_path / "q.png")


def test_numbers_in_words() -> None:
    assert [percent(0.375), percent(1.0), percent(0.0)] == ["37.5 %", "100 %", "0 %"]
    assert [points(0.59), points(-0.055), points(0.0)] == ["+59", "\u22125.5", "+0"]
    assert [duration(3725), duration(61), duration(5.4), duration(None)] == ["1 h 2 min", "1 min 1 s", "5 s", "?"]
    assert [count_text(12500), count_text(3e6), count_text(999)] == ["12.5k", "3M", "999"]
