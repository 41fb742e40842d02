"""What a user sees while waiting."""

import io
import re

import pytest
from rich.console import Console

from policy_decorator.progress import Bars, Silent


def _console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120), out


def test_silent_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    display = Silent()
    with display.stage("anything", 3) as update:
        update(1)
        update(3, 3, note="done")
    display.say("hello")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("total", [1, 7, 10, 1000])
def test_elsewhere_than_on_a_terminal_a_stage_is_at_most_ten_plain_lines(total: int) -> None:
    console, out = _console(terminal=False)
    with Bars(console).stage("refining", total) as update:
        for done in range(1, total + 1):
            update(done, note="training success 40%")
    lines = out.getvalue().splitlines()
    assert len(lines) == min(total, 10)
    assert lines[-1].startswith(f"refining: {total:,}/{total:,}")
    assert all(re.fullmatch(r"refining: [\d,]+/[\d,]+  \d+ s, ETA \d+ s  training success 40%", x) for x in lines)


def test_the_eta_of_a_line_extrapolates_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out = _console(terminal=False)
    clock = iter([100.0, 130.0])  # a quarter took 30 s
    monkeypatch.setattr("policy_decorator.progress.time.monotonic", lambda: next(clock))
    with Bars(console).stage("stage", 8) as update:
        update(2)
    assert out.getvalue() == "stage: 2/8  30 s, ETA 90 s\n"


def test_a_total_that_changes_and_a_total_of_zero() -> None:
    console, out = _console(terminal=False)
    with Bars(console).stage("stage", 0) as update:
        update(0)
        update(5, 10)
    assert out.getvalue().startswith("stage: 5/10")


def test_on_a_terminal_a_stage_within_a_stage_shows_both_and_leaves_the_outer_one() -> None:
    console, out = _console(terminal=True)
    bars = Bars(console)
    with bars.stage("refining", 100) as outer:
        outer(40, note="training success 50%")
        with bars.stage("evaluating", 10) as inner:
            inner(10)
            assert bars._bars is not None
            assert [t.description for t in bars._bars.tasks] == ["refining", "evaluating"]
        assert [t.description for t in bars._bars.tasks] == ["refining"]
        assert bars._bars.tasks[0].completed == 40
        outer(100)
    assert bars._bars is None
    text = out.getvalue()
    assert "100/100" in text
    assert "training success 50%" in text
    assert "ETA" in text


def test_the_bar_is_taken_down_when_the_stage_fails_and_the_next_one_works() -> None:
    console, out = _console(terminal=True)
    bars = Bars(console)
    with pytest.raises(KeyboardInterrupt), bars.stage("refining", 10):
        raise KeyboardInterrupt
    assert bars._bars is None
    with bars.stage("again", 10) as update:
        update(10)
    assert "again" in out.getvalue()


def test_say_prints_the_text_as_it_is() -> None:
    console, out = _console(terminal=False)
    Bars(console).say("Warning: 0.5 of it")
    assert out.getvalue() == "Warning: 0.5 of it\n"
