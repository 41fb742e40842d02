"""A run folder loses nothing: refusals, moves aside, truncation, full disks, concurrent readers."""

import dataclasses
import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from policy_decorator import provenance
from policy_decorator.errors import UserError
from policy_decorator.runlog import COUNTS, RunFolder, atomic_json, free_disk_check, to_json


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Inner:
    bound: float = math.inf
    sizes: tuple[int, ...] = (256, 256)


@dataclasses.dataclass(frozen=True)
class Outer:
    task: str = "PegInsert"
    seed: int = 7
    out: Path = Path("runs/a")
    inner: Inner = dataclasses.field(default_factory=Inner)
    colour: Colour = Colour.RED


def counts(env_steps: int) -> dict[str, int]:
    return dict.fromkeys(COUNTS, 1) | {"env_steps": env_steps}


def strict(text: str) -> Any:
    """json.loads that refuses NaN and Infinity, as a standard parser does."""

    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def small_run(path: Path) -> RunFolder:
    return RunFolder.create(path, Outer(), tensorboard=False)


def test_config_comes_back_as_plain_json(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    inner = {"bound": None, "sizes": [256, 256]}
    assert run.config() == {
        "task": "PegInsert",
        "seed": 7,
        "out": str(Path("runs/a")),
        "inner": inner,
        "colour": "red",
    }
    strict((run.path / "config.json").read_text())


def test_to_json_takes_arrays_tensors_and_functions_and_refuses_objects() -> None:
    value = {
        "a": np.float32(0.5),
        "b": torch.tensor([1.0, math.nan]),
        "c": np.array([True]),
        3: dict,
        "d": os.getcwd,
    }
    found = to_json(value)
    assert found == {"a": 0.5, "b": [1.0, None], "c": [True], "3": "builtins.dict", "d": f"{os.name}.getcwd"}
    with pytest.raises(TypeError, match="object"):
        to_json(object())


def test_provenance_names_versions_seed_and_command(tmp_path: Path) -> None:
    found = small_run(tmp_path / "run").provenance()
    assert found["packages"]["numpy"] == np.__version__
    assert found["packages"]["torch"] == torch.__version__
    assert found["seed"] == 7
    assert found["argv"] == sys.argv
    assert found["cpu_count"] == os.cpu_count()
    assert found["processor"]
    assert found["cuda"] == torch.version.cuda
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert set(found["git"]) == {"revision", "dirty"}


def test_provenance_names_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card {i}")
    assert small_run(tmp_path / "run").provenance()["gpus"] == ["Card 0", "Card 1"]


def test_provenance_knows_every_package_that_a_run_can_depend_on() -> None:
    """Those of the package and of its extras; what draws, prints, or reads and writes files decides no number."""
    stated = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = [wanted for name, wanted in stated["optional-dependencies"].items() if name not in ("dev", "all")]
    names = {re.split(r"[^\w-]", line)[0] for wanted in (stated["dependencies"], *extras) for line in wanted}
    assert names - set(provenance.PACKAGES) == {"tyro", "rich", "imageio", "jinja2", "filelock"}


def test_metrics_carry_all_counts_and_write_nan_as_null(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    run.log({"train/success": 0.25, "loss/critic": math.nan, "loss/actor": -math.inf}, counts(10))
    run.log({"train/success": np.float32(0.5), "q/mean": torch.tensor(2.0)}, counts(20))
    lines = [strict(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert lines == RunFolder.open(run.path).metrics()
    assert {*COUNTS, "wall_seconds"} <= lines[0].keys()
    assert lines[0]["loss/critic"] is lines[0]["loss/actor"] is None
    assert (lines[1]["env_steps"], lines[1]["train/success"], lines[1]["q/mean"]) == (20, 0.5, 2.0)
    assert lines[0]["wall_seconds"] <= lines[1]["wall_seconds"]


def test_a_line_without_a_count_is_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    with pytest.raises(ValueError, match="base_queries"):
        run.log({}, {name: 1 for name in COUNTS if name != "base_queries"})


def test_tensorboard_gets_the_metrics_over_env_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log({"eval/full": 0.5, "loss/critic": math.nan}, counts(100))
        run.log({"eval/full": 0.75}, counts(200))
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/full")] == [(100, 0.5), (200, 0.75)]
    assert "loss/critic" not in events.Tags()["scalars"]


def test_a_used_folder_is_refused_with_the_three_ways_out(tmp_path: Path) -> None:
    small_run(tmp_path / "run").log({}, counts(1))
    with pytest.raises(UserError, match=r"(?s)--out.*--resume.*--overwrite"):
        small_run(tmp_path / "run")
    assert len(RunFolder.open(tmp_path / "run").metrics()) == 1


def test_overwrite_moves_the_old_run_aside_every_time(tmp_path: Path) -> None:
    for k in range(3):
        with RunFolder.create(tmp_path / "run", {"k": k}, overwrite=True, tensorboard=False) as run:
            pass
    assert run.config() == {"k": 2}
    aside = sorted(tmp_path.glob("run.old-*"))
    assert sorted(RunFolder.open(old).config()["k"] for old in aside) == [0, 1]


def test_overwrite_never_moves_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds no run"):
        RunFolder.create(tmp_path / "home", {}, overwrite=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    with pytest.raises(UserError, match="is a file"):
        RunFolder.create(tmp_path / "home" / "letter.txt", {}, overwrite=True)


def test_a_run_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with small_run(path) as run:
        for other in (
            lambda: RunFolder.hold(path, tensorboard=False),
            lambda: RunFolder.create(path, {}, overwrite=True),
        ):
            with pytest.raises(UserError, match="another process"):
                other()
        run.log({}, counts(1))
        assert RunFolder.open(path).metrics() == run.metrics()  # reading is free
    RunFolder.hold(path, tensorboard=False).close()


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert small_run(tmp_path / "run").metrics() == []


def test_resume_drops_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    for env_steps in (100, 200, 300):
        run.log({"train/success": env_steps / 1000}, counts(env_steps))
        run.log_evaluation("full", env_steps, [1, 2], [True, False], [5, 9])
    run.write_summary({"gain": 0.5})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 400, "train/su')  # the process died while it wrote
    run.close()
    again = RunFolder.hold(run.path, tensorboard=False)
    assert len(again.metrics()) == 3
    assert again.summary() == {"gain": 0.5}
    again.rewind(200)
    again.log({"train/success": 1.0}, counts(250))
    assert [line["env_steps"] for line in again.metrics()] == [100, 200, 250]
    assert [line["env_steps"] for line in again.evaluations("full")] == [100, 200]
    walls = [line["wall_seconds"] for line in again.metrics()]
    assert walls == sorted(walls)
    assert again.summary() == {}
    resumed = again.provenance()["resumed"][0]
    assert resumed["env_steps"] == 200
    assert resumed["packages"]["torch"] == torch.__version__
    assert {"python", "platform", "processor", "cuda", "gpus"} <= set(resumed)


def test_episodes_keep_every_outcome(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    run.log_evaluation("base", 0, np.arange(3), np.array([True, False, True]), torch.tensor([7, 50, 8]).tolist())
    run.log_evaluation("final", 900, [0], [True], [4])
    kept = {
        "name": "base",
        "env_steps": 0,
        "seeds": [0, 1, 2],
        "success": [True, False, True],
        "lengths": [7, 50, 8],
    }
    assert run.evaluations("base") == [kept]
    assert len(run.evaluations()) == 2
    with pytest.raises(ValueError, match="do not match"):
        run.log_evaluation("base", 0, [1, 2], [True], [4, 5])


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        RunFolder.open(tmp_path / "nowhere")
    small_run(tmp_path / "peg-0")
    with pytest.raises(UserError, match="holds the runs peg-0"):
        RunFolder.open(tmp_path)
    (tmp_path / "peg-0" / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        RunFolder.open(tmp_path / "peg-0").summary()
    (tmp_path / "peg-0" / "metrics.jsonl").write_text("oops\n{}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        RunFolder.open(tmp_path / "peg-0").metrics()


def full_disk(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    atomic_json(tmp_path / "summary.json", {"kept": 1})
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(UserError, match="disk is full"):
        atomic_json(tmp_path / "summary.json", {"kept": 2})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"kept": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("write", [lambda r: r.log({}, counts(1)), lambda r: r.log_evaluation("base", 0, [], [], [])])
def test_a_line_on_a_full_disk_is_a_user_error(tmp_path: Path, write: Callable[[RunFolder], None]) -> None:
    run = small_run(tmp_path / "run")
    for name in ("metrics.jsonl", "episodes.jsonl"):
        (run.path / name).symlink_to("/dev/full")
    with pytest.raises(UserError, match="--resume"):
        write(run)


def test_other_disk_errors_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> NoReturn:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="input/output"):
        atomic_json(tmp_path / "a.json", {})


def test_a_concurrent_reader_sees_only_whole_files_and_lines(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    run.write_summary({"row": [0] * 5000})
    stop, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        reader = RunFolder.open(run.path)
        while not stop.is_set():
            try:
                row = reader.summary()["row"]
                seen.add(row[0])
                whole = len(row) == 5000 and len(set(row)) == 1
                if not whole or any(len(line["text"]) != 20_000 for line in reader.metrics()):
                    wrong.append("half a file")
            except Exception as error:
                wrong.append(repr(error))

    thread = threading.Thread(target=read)
    thread.start()
    for k in range(1, 40):
        run.write_summary({"row": [k] * 5000})
        run.log({"text": "x" * 20_000}, counts(k))  # type: ignore[dict-item]
    stop.set()
    thread.join()
    assert wrong == []
    assert len(seen) > 1


def test_free_disk_check_counts_real_bytes(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    free_disk_check(tmp_path / "not" / "yet", free // 2)
    with pytest.raises(UserError, match="GB are needed"):
        free_disk_check(tmp_path / "not" / "yet", 2 * free)


def test_reading_a_run_does_not_need_torch() -> None:
    code = (
        "import sys, policy_decorator; before = set(sys.modules)\n"
        "import policy_decorator.reports.html, policy_decorator.statistics, policy_decorator.runlog\n"
        "print('torch' in set(sys.modules) - before)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.strip() == "False"
