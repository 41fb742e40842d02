"""What methods are made of and what they cost is read from runs of them."""

import csv
import json
from pathlib import Path

import pytest

from policy_decorator.bench.methods import SMALL, CostsConfig, costs, main, parts_of, sample_run
from policy_decorator.errors import UserError
from policy_decorator.methods import METHODS
from policy_decorator.methods.ppo_finetuning import Config as PPOFineTuning


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_is_made_of(method: str) -> None:
    try:
        base, run = sample_run(method)
    except UserError as missing:
        pytest.skip(str(missing))
    parts = parts_of(run)
    assert parts.composition.startswith("Residual") == (method in {"policy-decorator", "residual-rl", "fish"})
    assert (base == "diffusion") == (method in {"dppo", "dipo"})
    assert parts.reward.startswith("success") == (method not in {"gail", "dac", "fish", "rot"})


def test_methods_differ_in_the_parts_that_make_them() -> None:
    def parts(method: str) -> dict[str, str]:
        return vars(parts_of(sample_run(method)[1]))

    def differing(a: str, b: str) -> set[str]:
        return {name for name, part in parts(a).items() if parts(b)[name] != part}

    assert differing("policy-decorator", "residual-rl") == {"composition", "gate"}
    assert differing("cal-ql", "cql") == {"update"}
    assert differing("rlpd", "gail") == {"data", "reward"}


def test_costs_count_updates_and_questions() -> None:
    ours, alone = (costs(name, SMALL, 0.1) for name in ("policy-decorator", "rlpd"))
    assert ours.updates_per_step == alone.updates_per_step == SMALL.updates_per_step
    # A decision asks once; a time-out, after 10 steps here, once more.
    assert ours.base_queries_per_step == pytest.approx(1.1, abs=0.02)
    assert alone.base_queries_per_step == 0
    assert ours.total_ms == pytest.approx(ours.acting_ms + ours.learning_ms)
    assert ours.learning_ms == pytest.approx(ours.update_ms * SMALL.updates_per_step)
    assert ours.offline_update_ms is None


def test_an_offline_phase_has_costs_of_its_own() -> None:
    measured = costs("iql", SMALL, 0.1)
    assert measured.offline_update_ms is not None
    assert 0.1 < measured.offline_update_ms / measured.update_ms < 10  # the same update


def test_a_rollout_is_measured_whole() -> None:
    measured = costs("ppo-finetuning", SMALL, 0.1)
    ppo = PPOFineTuning().ppo
    assert measured.updates_per_step == ppo.epochs * ppo.minibatches / (ppo.rollout * SMALL.envs)


def test_the_table_is_written_with_where_it_comes_from(tmp_path: Path) -> None:
    main(CostsConfig(out=tmp_path, methods=("policy-decorator",), seconds=0.1))
    with (tmp_path / "costs.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["method"] == "policy-decorator"
    assert float(row["total_ms"]) > 0
    assert json.loads((tmp_path / "provenance.json").read_text())["sizes"]["obs"] == 39
    with pytest.raises(UserError, match="method"):
        main(CostsConfig(out=tmp_path, methods=("nothing",)))


def test_methods_that_tune_the_base_are_measured_on_it() -> None:
    pytest.importorskip("peft", reason="PEFT is not installed")
    itself, from_scratch = costs("rlpd on the base", SMALL, 0.1), costs("rlpd", SMALL, 0.1)
    assert itself.base == "bet"
    assert itself.base_queries_per_step == from_scratch.base_queries_per_step == 0
    assert itself.learned_parameters < from_scratch.learned_parameters
