"""What methods are made of and what they cost is read from runs of them."""

import csv
import functools
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import policy_decorator.methods
from policy_decorator.bench import methods
from policy_decorator.bench.methods import (
    SMALL,
    VARIANTS,
    CostsConfig,
    Sizes,
    costs,
    in_short_rounds,
    main,
    own_settings,
    sample_run,
)
from policy_decorator.bench.parts import parts_of
from policy_decorator.cli.listing import LISTS
from policy_decorator.envs.adroit import HANDS
from policy_decorator.errors import MissingExtra, UserError
from policy_decorator.methods import METHODS, off_policy
from policy_decorator.methods.dppo import Config as DPPO
from policy_decorator.methods.ppo_finetuning import Config as PPOFineTuning
from policy_decorator.rl.episodes import WholeEpisodes
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig


@functools.cache
def parts(method: str) -> dict[str, str]:
    """Skips where an optional dependency is missing, and only there."""
    try:
        return asdict(parts_of(sample_run(method)[1]))
    except MissingExtra as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_is_made_of(method: str) -> None:
    try:
        base, run = sample_run(method)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    parts = parts_of(run)
    assert parts.composition.startswith("Residual") == (method in {"policy-decorator", "residual-rl", "fish"})
    assert (base == "diffusion") == (method in {"dppo", "dipo"})
    assert parts.reward.startswith("success") == (method not in {"gail", "dac", "fish", "rot"})


def test_no_two_methods_are_made_of_the_same() -> None:
    rows = [(row["name"], row["made_of"]) for row in LISTS["methods"]() if "not here" not in row["made_of"]]
    made = [tuple(parts.values()) for _, parts in rows]
    assert len(set(made)) == len(made) > 10, sorted((parts, name) for (name, _), parts in zip(rows, made, strict=True))


def test_a_method_that_cannot_be_built_is_no_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise error

    for module in (policy_decorator.methods, methods):
        monkeypatch.setattr(module, "METHODS", {"rlpd": replace(METHODS["rlpd"], build=refused)})
    error: UserError = MissingExtra("PEFT", "lora")
    assert [row["made_of"] for row in LISTS["methods"]()] == [{"not here": str(error)}]
    error = UserError("no good")
    with pytest.raises(UserError, match="rlpd cannot be built here"):
        LISTS["methods"]()


def test_methods_differ_in_the_parts_that_make_them() -> None:
    def differing(a: str, b: str) -> set[str]:
        return {name for name, part in parts(a).items() if parts(b)[name] != part}

    assert differing("policy-decorator", "residual-rl") == {"composition", "gate"}
    assert differing("cal-ql", "cql") == {"update"}
    assert differing("rlpd", "sacfd") == {"data", "update"}
    assert (parts("rlpd")["data"], parts("sacfd")["data"]) == ("Mixed(share=0.5)", "Mixed(as in one pool)")
    assert parts("rlpd")["update"] == parts("sacfd")["update"] + ", LayerNorm in the critics"
    assert differing("rlpd", "gail") == {"data", "reward", "update"}


def test_costs_count_updates_and_questions() -> None:
    ours, alone = (costs(name, SMALL, 0.1) for name in ("policy-decorator", "rlpd"))
    assert ours.updates_per_step == alone.updates_per_step == SMALL.updates_per_step
    # A decision asks once; a time-out once more.
    assert ours.base_queries_per_step == pytest.approx(1 + 1 / SMALL.episode)
    assert alone.base_queries_per_step == 0
    assert ours.total_ms == pytest.approx(ours.acting_ms + ours.learning_ms)
    assert ours.learning_ms == pytest.approx(ours.update_ms * SMALL.updates_per_step)
    assert ours.offline_update_ms is None


def test_sizes_are_those_of_door() -> None:
    door, sizes = HANDS["door"], Sizes()
    assert (sizes.obs, sizes.action, sizes.episode) == (door.obs_size, door.action_size, door.max_steps)
    assert sizes.demonstrations * sizes.demonstration == pytest.approx(6729, abs=sizes.demonstrations)


def test_a_chunk_is_as_many_environment_steps_as_it_has_actions() -> None:
    run = sample_run("dipo")[1]
    run.collector.decide(run.explorer)
    assert run.collector.step == SMALL.envs * run.collector.action.shape[1] > SMALL.envs


@pytest.mark.usefixtures("pot")
def test_rewards_of_whole_episodes_cost_what_an_episode_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only they take time on, a tenth of a second per frame: 13 frames are 12 steps and the first."""
    clock = SimpleNamespace(now=0.0)

    def score(episode: Tensor) -> Tensor:
        clock.now += 0.1 * len(episode)
        return torch.zeros(len(episode))

    def built(name: str, sizes: Sizes, _: Any) -> Any:
        cfg = replace(METHODS[name].config(), nets=NetConfig(width=8, depth=1), sac=SACConfig(batch_size=8))
        kind, run = sample_run(name, sizes, cfg)
        assert isinstance(run.intake, WholeEpisodes)
        run.intake.score = score
        return kind, run

    monkeypatch.setattr(methods, "sample_run", built)
    monkeypatch.setattr(methods, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    measured = costs("fish", replace(SMALL, envs=4, episode=12, steps_per_round=4), 8.0)
    assert measured.acting_ms == pytest.approx(100 * 13 / 12)


def test_an_offline_phase_has_costs_of_its_own() -> None:
    measured = costs("iql", SMALL, 0.1)
    assert measured.offline_update_ms is not None
    assert 0.1 < measured.offline_update_ms / measured.update_ms < 10  # the same update


def test_the_time_of_a_compiler_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock: an update takes 0.02 s, a hundred more where its kind is compiled."""
    clock = SimpleNamespace(now=0.0)

    class Slow:
        def __init__(self, learner: Any) -> None:
            self.learner, self.known = learner, set[bool]()

        def __call__(self, b: Any) -> Any:
            with_actor = self.learner.begun()
            clock.now += 0.02 if with_actor in self.known else 100.02
            self.known.add(with_actor)
            return self.learner.step(b, with_actor)

    monkeypatch.setattr(off_policy, "Compiled", Slow)
    monkeypatch.setattr(methods, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    measured = costs("iql", replace(SMALL, compiled=True), 1.0)
    assert (measured.update_ms, measured.offline_update_ms) == pytest.approx((20, 20))


@pytest.mark.parametrize("method", ["ppo-finetuning", "dppo"])
def test_what_learns_in_rounds_is_rewarded(method: str) -> None:
    """Otherwise its actor rests, and what is measured are updates of the value alone."""
    run = sample_run(method, replace(SMALL, envs=8), in_short_rounds(own_settings(method)))[1]
    learned = [p for p in cast(Any, run.learner).actor.parameters() if p.requires_grad]
    before = [p.clone() for p in learned]
    while run.learner.updates < 200:
        methods._act(run, 16)
        run.learn(run.learner.updates + 4)
    assert any(not torch.equal(p, q) for p, q in zip(learned, before, strict=True))


def test_a_rollout_is_measured_whole() -> None:
    measured = costs("ppo-finetuning", SMALL, 0.1)
    ppo = PPOFineTuning().ppo
    assert measured.updates_per_step == ppo.epochs * ppo.minibatches / (ppo.rollout * SMALL.envs)


def test_short_rounds_have_minibatches_as_large_and_as_many_updates_per_step() -> None:
    own, short = DPPO().ppo, in_short_rounds(DPPO()).ppo
    assert (short.rollout, short.minibatches, short.epochs) == (20, 1, own.epochs)
    assert short.rollout / short.minibatches == own.rollout / own.minibatches
    assert in_short_rounds(PPOFineTuning()).ppo.rollout < PPOFineTuning().ppo.rollout
    others = METHODS["dapg"].config()
    assert in_short_rounds(others) is others


def test_the_table_is_written_with_where_it_comes_from(tmp_path: Path) -> None:
    main(CostsConfig(out=tmp_path, methods=("policy-decorator",), seconds=0.1))
    with (tmp_path / "costs.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["method"] == "policy-decorator"
    assert float(row["total_ms"]) > 0
    assert json.loads((tmp_path / "provenance.json").read_text())["sizes"]["obs"] == 39
    with pytest.raises(UserError, match="method"):
        main(CostsConfig(out=tmp_path, methods=("nothing",)))
    with pytest.raises(UserError, match="device 'abacus' cannot be used"):
        main(CostsConfig(out=tmp_path, device="abacus"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_made_of_something_else(variant: str) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed")
    (base, run), (_, itself) = sample_run(variant), sample_run(VARIANTS[variant][0])
    assert base == "bet"

    def made_of(run: Any) -> list[tuple[type, int]]:
        parts: list[nn.Module] = [run.learner.actor, run.learner.critic]
        return [(type(part), sum(p.numel() for p in part.parameters() if p.requires_grad)) for part in parts]

    assert made_of(run) != made_of(itself)


def test_methods_that_tune_the_base_are_measured_on_it() -> None:
    pytest.importorskip("peft", reason="PEFT is not installed")
    itself, from_scratch = costs("rlpd on the base", SMALL, 0.1), costs("rlpd", SMALL, 0.1)
    assert itself.base == "bet"
    assert itself.base_queries_per_step == from_scratch.base_queries_per_step == 0
    assert itself.learned_parameters < from_scratch.learned_parameters
