"""`pidec bench` from end to end at tiny sizes: its ratios are those of the numbers beside them."""

import csv
import importlib.util
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from policy_decorator.bench import results
from policy_decorator.bench.config import BenchConfig
from policy_decorator.bench.scaling import PANELS
from policy_decorator.cli import main
from policy_decorator.cli.bench import tables
from policy_decorator.disk import from_json, read_json

HAVE_SB3 = importlib.util.find_spec("stable_baselines3") is not None
TINY = "--quick --env synthetic --base mlp --obs 5 --action 2 --width 8 --depth 1 --batch-size 16 --envs 2 --workers 0"
TINY += " --replay 300 --seconds 0.01 --steps 64 --threads 1 --precisions float32 --device cpu --quiet --json"


def pidec(*args: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["bench", *args])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One run, with Stable-Baselines3 where it is installed. What is to be compiled is not: that saves a minute."""
    folder = tmp_path_factory.mktemp("bench") / "results"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TORCHDYNAMO_DISABLE", "1")  # of the processes that measure
        code, out, err = pidec(*TINY.split(), "--out", str(folder), *(() if HAVE_SB3 else ("--no-sb3",)))
    assert code == 0, err
    return json.loads(out), folder


def test_ratios_are_of_the_numbers_beside_them(made: tuple[dict[str, Any], Path]) -> None:
    value, _ = made
    best = min(row["update_ms"] for row in value["updates"])
    assert {(row["precision"], row["way"]) for row in value["updates"]} == {
        ("float32", "plain"),
        ("float32", "compiled"),
    }
    ratios, formats = value["ratios"], value["limit"]["formats"]
    assert ratios["update_vs_eager"] == pytest.approx(value["eager"][0]["update_ms"] / best)
    assert value["eager"][0]["threads"] == 1
    assert ratios["limit"] == min(formats, key=lambda name: formats[name]["ms"])
    assert ratios["update_vs_limit"] == pytest.approx(best / formats[ratios["limit"]]["ms"])
    for row in formats.values():
        assert row["ms"] == pytest.approx(1000 * value["limit"]["flops_per_update"] / row["flops_per_s"])
    for name, single in value["ratios_by_precision"].items():
        row = min((r for r in value["updates"] if r["precision"] == name), key=lambda r: r["update_ms"])
        assert single["update_vs_eager"] == pytest.approx(value["eager"][0]["update_ms"] / row["update_ms"])
        assert single["update_vs_limit"] == pytest.approx(row["update_ms"] / formats[name]["ms"])
        assert row["updates_per_s"] == pytest.approx(1000 / (row["update_ms"] + row["sample_ms"]))
    assert all(value["ratios"][name] > 0 for name in ("update_vs_eager", "update_vs_limit"))


@pytest.mark.skipif(not HAVE_SB3, reason="Stable-Baselines3 is not installed")
def test_end_to_end_is_compared_with_stable_baselines(made: tuple[dict[str, Any], Path]) -> None:
    value, _ = made
    (theirs,) = (row for row in value["loops"] if row["side"] == "sb3")
    ours = {row["precision"]: row["steps_per_s"] for row in value["loops"] if row["side"] == "ours"}
    assert min(theirs["steps_per_s"], *ours.values()) > 0
    assert value["ratios"]["end_to_end_vs_sb3"] == pytest.approx(max(ours.values()) / theirs["steps_per_s"])
    for name, rate in ours.items():
        assert value["ratios_by_precision"][name]["end_to_end_vs_sb3"] == pytest.approx(rate / theirs["steps_per_s"])


def test_memory_collection_and_provenance(made: tuple[dict[str, Any], Path]) -> None:
    value, _ = made
    memory = value["memory"]
    numbers = 5 + 2 + 2 + 3 + 5 + 2  # obs, raw, base, reward, terminated, decisions, next_obs, next_base
    assert memory["bytes_per_transition"] == 4 * numbers == sum(memory["bytes_by_field"].values())
    assert memory["transitions_in_8_GB"] == 8 * 10**9 // (4 * numbers)
    assert all(row["decisions_per_s"] > 0 for row in value["loops"] if row["side"] == "ours")
    assert "random weights" in value["base"]
    assert {"git", "packages", "cpu", "cores", "default_threads", "load_average"} <= set(value["provenance"])
    assert "argv" not in value["provenance"]


def test_files_say_the_same_as_the_answer(made: tuple[dict[str, Any], Path]) -> None:
    value, folder = made
    assert sorted(p.name for p in folder.iterdir()) == ["bench.csv", "bench.json"]
    assert read_json(folder / "bench.json") == {k: v for k, v in value.items() if k != "files"}
    with (folder / "bench.csv").open() as file:
        rows = list(csv.DictReader(file))
    (ratio,) = (row for row in rows if row["measure"] == "update_vs_eager" and row["setting"] == "best")
    assert float(ratio["value"]) == pytest.approx(value["ratios"]["update_vs_eager"])


def test_tables_show_the_numbers(made: tuple[dict[str, Any], Path]) -> None:
    value = dict(made[0])
    value["settings"] = from_json(BenchConfig, value["settings"])
    value["scaling"] = [
        {"what": "batch", "size": 256, "ms": 12.5, "call": "one update", "per_s": 20_480, "counted": "transitions"},
        {"what": "batch", "size": 512, "call": "one update", "note": "left out: no time"},
    ]
    console = Console(width=200, file=io.StringIO())
    console.print(tables(value))
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for ratio in ("update_vs_eager", "update_vs_limit"):
        assert f"{value['ratios'][ratio]:.2f}" in text
    for row in value["loops"]:
        assert f"{row['steps_per_s']:.1f}" in text
    assert str(value["memory"]["bytes_per_transition"]) in text
    assert "20,480 transitions/s" in text
    assert "left out: no time" in text


def test_a_missing_stable_baselines_is_said_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "stable_baselines3" else found(name, *rest)
    )
    code, out, err = pidec(*TINY.split())
    assert (code, out) == (2, "")
    assert "policy-decorator[bench]" in err
    assert "--no-sb3" in err


@pytest.mark.parametrize(
    "wrong",
    ["--repeats 0", "--threads 0", "--envs 0", "--workers -1", "--updates-per-step 0", "--obs 7 --env adroit/door"],
)
def test_wrong_numbers_are_refused(wrong: str) -> None:
    code, out, err = pidec(*wrong.split(), "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("pidec: ")


def test_scaling_is_drawn_with_what_was_left_out(made: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    value, _ = made
    rows = [
        {"what": panel.what, "size": size, "call": panel.call} | ({"ms": 1.0, "per_s": 1.0} if i < 2 else {"note": "-"})
        for panel in PANELS
        for i, size in enumerate(panel.sizes)
    ]
    written = results.write(tmp_path, value | {"scaling": rows})
    assert [path.name for path in written] == ["bench.json", "bench.csv", "scaling.csv", "scaling.png"]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "scaling.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    panels = results.draw(rows).axes
    assert [len(axes.lines[0].get_xdata()) for axes in panels] == [2, 2, 2, 2]
    assert "16.4k: left out" in panels[2].get_xlabel()
