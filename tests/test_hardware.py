"""What a run takes of the machine it is on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policy_decorator import api, hardware, machine
from policy_decorator.bench import measure
from policy_decorator.config import RefineConfig
from policy_decorator.errors import UserError
from policy_decorator.hardware import name_of, resolved, used, workers_of
from policy_decorator.progress import Silent
from policy_decorator.rl.captured import Captured
from policy_decorator.rl.compiled import Compiled
from policy_decorator.rl.nets import NetConfig
from policy_decorator.runlog import RunFolder
from tests.conftest import SteadyController

MakeConfig = Callable[..., RefineConfig]


class Said(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def slowdown(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets bfloat16 take so many times as long as float32."""
    return lambda times: monkeypatch.setattr(machine, "bfloat16_slowdown", lambda device: times)


def with_precision(config: RefineConfig, precision: Any) -> RefineConfig:
    return replace(config, learn=replace(config.learn, nets=replace(config.learn.nets, precision=precision)))


@pytest.mark.parametrize(("times", "taken"), [(0.3, "bfloat16"), (1.2, "float32"), (60.0, "float32")])
def test_auto_takes_bfloat16_where_it_saves_time(
    times: float, taken: str, slowdown: Callable[[float], None], make_config: MakeConfig
) -> None:
    slowdown(times)
    display = Said()
    assert resolved(with_precision(make_config(), "auto"), display) == with_precision(make_config(), taken)
    assert display.lines == []


def test_bfloat16_on_a_processor_without_it_is_warned_of(
    slowdown: Callable[[float], None], make_config: MakeConfig
) -> None:
    config, display = with_precision(make_config(), "bfloat16"), Said()
    slowdown(60.0)
    assert resolved(config, display) == config
    (line,) = display.lines
    assert "60 times as long as in float32" in line
    slowdown(1.5)
    resolved(config, quiet := Said())
    assert quiet.lines == []


def test_float32_is_not_measured(monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig) -> None:
    monkeypatch.setattr(machine, "bfloat16_slowdown", lambda device: pytest.fail("nothing to decide"))
    assert resolved(make_config(), Silent()) == make_config()


@pytest.mark.parametrize(("times", "formats"), [(0.3, ["float32", "bfloat16"]), (60.0, ["float32"])])
def test_a_bench_leaves_out_a_format_that_the_processor_lacks(
    times: float, formats: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "bfloat16_slowdown", lambda device: times)
    assert list(measure.precisions_of(torch.device("cpu"))) == formats


def test_the_slowdown_is_measured_here() -> None:
    assert 0.01 < machine.bfloat16_slowdown(torch.device("cpu")) < 10_000


def test_a_network_by_itself_does_not_decide() -> None:
    with pytest.raises(UserError, match="needs float32 or bfloat16"):
        _ = NetConfig(precision="auto").hidden_dtype


@pytest.mark.usefixtures("unreported")
def test_a_run_records_what_auto_meant_and_is_resumed_with_it(
    tmp_path: Path, slowdown: Callable[[float], None], make_config: MakeConfig, steady: SteadyController
) -> None:
    slowdown(0.3)
    config = with_precision(make_config(total_steps=300), "auto")
    api.run(config, steady, out=tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").config()["learn"]["nets"]["precision"] == "bfloat16"
    slowdown(60.0)  # another machine
    longer = replace(config, train=replace(config.train, total_steps=500))
    api.run(longer, steady, out=tmp_path / "run", resume=True)
    assert RunFolder.open(tmp_path / "run").config()["learn"]["nets"]["precision"] == "bfloat16"


@pytest.mark.usefixtures("unreported")
@pytest.mark.filterwarnings("ignore:torch.compile failed")
@pytest.mark.parametrize(
    ("learner", "fails", "compiled"), [("sac", False, True), ("sac", True, False), ("ppo", False, False)]
)
def test_a_summary_says_whether_updates_were_compiled(
    learner: Any, fails: bool, compiled: bool, tmp_path: Path, make_config: MakeConfig, steady: SteadyController,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from torch._dynamo.exc import TorchDynamoException

    def stand_in(step: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def graph(*given: Any) -> Any:
            if fails:
                raise TorchDynamoException("not this one")
            return step(*given)

        return graph

    monkeypatch.setattr(torch, "compile", stand_in)
    monkeypatch.setattr(hardware, "can_compile", lambda: True)
    config = make_config(total_steps=200, compile="on")
    if learner == "ppo":
        config = replace(config, learn=replace(config.learn, learner="ppo", n_step=1, base_only_warmup=True))
    assert api.run(config, steady, out=tmp_path / "run").summary["compiled"] is compiled
    again = api.run(config, steady, out=tmp_path / "run", resume=True)  # at its end: nothing is left to learn
    assert (again.summary["compiled"], again.summary["cuda_graphs"]) == (compiled, False)


@pytest.mark.parametrize("recorded", [{}, {True: "a graph"}])
def test_what_is_replayed_may_be_compiled_too(recorded: dict[bool, Any]) -> None:
    compiled, captured = Compiled.__new__(Compiled), Captured.__new__(Captured)
    compiled.works, captured.recorded, captured.step = {True: True}, recorded, compiled.step
    assert used([captured, None]) == {"compiled": True, "cuda_graphs": bool(recorded)}


def test_workers_are_one_per_core(make_config: MakeConfig) -> None:
    assert workers_of(make_config(workers=3)) == 3
    assert workers_of(make_config(workers=None)) != 1  # a single process would only pass messages on


def test_a_gpu_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    assert name_of(torch.device("cuda:1")) == "cuda:1 (Card 1)"
    assert name_of(torch.device("cpu")) == "cpu"
