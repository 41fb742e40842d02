"""What noise a base policy bears: the estimate against known curves, the noise, and what a run makes of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted import Interrupted
from torch import Tensor, nn

from policy_decorator import api, probes
from policy_decorator.bench.methods import sample_run
from policy_decorator.config import RefineConfig
from policy_decorator.errors import UserError
from policy_decorator.memory import session
from policy_decorator.rl.tolerance import EPISODES, Batch, Disturbed, halved_at, tolerance

pytestmark = pytest.mark.usefixtures("unreported")

MakeConfig = Callable[..., RefineConfig]


def _told(rng: np.random.Generator, p: float, at: float, steepness: float) -> Callable[[int, float], Batch]:
    def play(k: int, amplitude: float) -> Batch:
        return Batch(amplitude, int(rng.binomial(EPISODES, p / (1 + (amplitude / at) ** steepness))), EPISODES)

    return play


@pytest.mark.parametrize(
    ("p", "at", "steepness"), [(0.4, 0.9, 3.0), (0.5, 0.4, 1.5), (0.4, 0.1, 4.0), (0.25, 0.015, 2.0), (0.8, 0.2, 2.0)]
)
def test_half_of_the_success_is_found(p: float, at: float, steepness: float) -> None:
    """Curves like those of peg-insert-side, Pen, Door and StackCube."""
    rng = np.random.default_rng(0)
    found = np.array([tolerance(_told(rng, p, at, steepness))[0] for _ in range(20)])
    assert np.median(found) == pytest.approx(at, rel=0.5)
    assert (np.abs(np.log(found / at)) < np.log(3)).mean() > 0.7


def test_what_bears_everything_gets_the_largest() -> None:
    found, batches = tolerance(lambda k, amplitude: Batch(amplitude, EPISODES, EPISODES))
    assert found == 1.0
    assert batches[0].amplitude == 0.0
    assert batches[-1].amplitude == 1.0


def test_nothing_is_said_of_a_base_that_never_succeeds() -> None:
    with pytest.raises(UserError, match="in 80 episodes the base succeeded in none"):
        tolerance(lambda k, amplitude: Batch(amplitude, 0, EPISODES))


def test_more_is_borne_where_more_succeed() -> None:
    base = Batch(0.0, 40, 80)
    found = [halved_at([base, Batch(0.1, successes, 80)]) for successes in (0, 10, 20, 30, 40)]
    assert found == sorted(found)
    assert found[2] == pytest.approx(0.1, rel=0.2)  # half is left


class _Still:
    context, chunk = 1, 2

    def act(self, window: Tensor) -> Tensor:
        return torch.full((len(window), 2, 3), 0.9)


def test_noise_is_uniform_held_and_clipped() -> None:
    policy = session(Disturbed(_Still(), 0.4, hold=3))
    torch.manual_seed(0)
    acted = torch.stack([policy.act(torch.zeros(500, 1, 4), torch.arange(500)) for _ in range(6)])
    assert torch.equal(acted[0], acted[2])
    assert torch.equal(acted[3], acted[5])
    assert not torch.equal(acted[2], acted[3])
    assert (acted.min().item(), acted.max().item()) == (pytest.approx(0.5, abs=1e-2), 1.0)
    assert (acted == 1).float().mean().item() == pytest.approx(3 / 8, abs=0.03)  # above 0.1 of -0.4 to 0.4
    assert policy.queries == 6 * 500
    assert session(policy).queries == 0


def _settings(make_config: MakeConfig, **learn: Any) -> RefineConfig:
    cfg = make_config(save_every=100)
    return replace(cfg, learn=replace(cfg.learn, bound="tolerance", **learn))


def test_a_run_measures_it_and_says_how(tmp_path: Path, make_config: MakeConfig, noisy: nn.Module) -> None:
    """The toy's base errs by 0.08 and is stopped by a disc of 0.06, at up to 0.2 a step."""
    refined = api.run(_settings(make_config, bound_share=0.5), noisy, out=tmp_path / "run")
    told = json.loads((tmp_path / "run" / "tolerance.json").read_text())
    assert [batch["episodes"] for batch in told["batches"]] == [EPISODES] * 5
    assert told["batches"][0]["amplitude"] == 0
    assert 0.05 < told["tolerance"] <= 1
    assert refined.summary["bound"] == pytest.approx(told["tolerance"] / 2)
    counted = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert refined.summary["eval_env_steps"] > sum(line["env_steps"] for line in counted)  # those of the probes, too


def test_a_run_that_goes_on_does_not_measure_again(
    tmp_path: Path, make_config: MakeConfig, noisy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = _settings(make_config)
    whole = api.run(cfg, noisy, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        api.run(cfg, noisy, out=tmp_path / "run", display=Interrupted(400))

    def never(play: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(probes, "tolerance", never)
    again = api.run(cfg, noisy, out=tmp_path / "run", resume=True)
    told = [{k: v for k, v in x.summary.items() if k != "wall_seconds"} for x in (whole, again)]
    assert told[0] == told[1]


def test_without_episodes_there_is_nothing_to_measure(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="measured in episodes of the task"):
        sample_run("policy-decorator", settings=_settings(make_config).learn)
