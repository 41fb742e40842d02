"""Policies of LeRobot as base policies: real ones, and stand-ins for those of newer versions."""

import json
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from foreign import ACTION, OBS, STEPS, check_contract, episode, played, real, remembers
from torch import Tensor, nn

from policy_decorator.base_policies.external import as_policy
from policy_decorator.base_policies.lerobot import from_lerobot, load_lerobot
from policy_decorator.errors import UserError

KEYS = {"observation.state": slice(0, 4), "observation.environment_state": slice(4, OBS)}
CHUNK = 4


def features(*sizes: tuple[str, str, int]) -> dict[str, Any]:
    types = real("lerobot.configs.types")
    return {name: types.PolicyFeature(types.FeatureType[kind], (size,)) for name, kind, size in sizes}


STATE = ("observation.state", "STATE", 4)
SCENE = ("observation.environment_state", "ENV", OBS - 4)


def act(*inputs: tuple[str, str, int], **changes: Any) -> Any:
    lerobot = real("lerobot.policies.act.modeling_act")
    config = lerobot.ACTConfig(
        input_features=features(*(inputs or (STATE, SCENE))),
        output_features=features(("action", "ACTION", ACTION)),
        **{"chunk_size": CHUNK, "n_action_steps": CHUNK, "dim_model": 16, "n_heads": 2, "dim_feedforward": 16}
        | changes,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        device="cpu",
    )
    return lerobot.ACTPolicy(config, dataset_stats=statistics()).eval()


def statistics(**changes: float) -> dict[str, dict[str, Tensor]]:
    sizes = {STATE[0]: STATE[2], SCENE[0]: SCENE[2], "action": ACTION}
    values = {"mean": 0.1, "std": 0.8, "min": -1.0, "max": 1.0} | changes
    return {name: {what: torch.full((n,), value) for what, value in values.items()} for name, n in sizes.items()}


def diffusion() -> Any:
    lerobot = real("lerobot.policies.diffusion.modeling_diffusion")
    config = lerobot.DiffusionConfig(
        input_features=features(STATE, SCENE),
        output_features=features(("action", "ACTION", ACTION)),
        n_action_steps=CHUNK,
        horizon=8,
        down_dims=(8, 16),
        n_groups=4,
        diffusion_step_embed_dim=8,
        num_inference_steps=2,
        device="cpu",
    )
    return lerobot.DiffusionPolicy(config, dataset_stats=statistics()).eval()


def test_a_queue_of_actions_for_every_row() -> None:
    policy = from_lerobot(act(), ACTION, keys=KEYS)
    check_contract(policy, asked_per_episode=STEPS // CHUNK)
    assert remembers(policy)


def test_it_does_what_the_policy_does_alone() -> None:
    theirs, obs = act(), episode()
    policy = from_lerobot(theirs, ACTION, keys=KEYS)
    ours = played(policy, obs)[:, 0]
    theirs.reset()
    alone = [theirs.select_action({name: o[None, part] for name, part in KEYS.items()})[0] for o in obs]
    torch.testing.assert_close(ours, torch.stack(alone).clamp(-1, 1))


def test_an_ensemble_over_time_for_every_row() -> None:
    policy = from_lerobot(act(temporal_ensemble_coeff=0.1, n_action_steps=1), ACTION, keys=KEYS)
    check_contract(policy)
    assert remembers(policy)


def test_a_diffusion_policy_keeps_its_history_for_every_row() -> None:
    check_contract(from_lerobot(diffusion(), ACTION, keys=KEYS), random=True, asked_per_episode=STEPS // CHUNK)


def test_a_saved_policy_is_found_by_its_folder(tmp_path: Path) -> None:
    theirs = act()
    theirs.save_pretrained(tmp_path / "saved")
    loaded = load_lerobot(tmp_path / "saved", ACTION, device=torch.device("cpu"), keys=KEYS)
    torch.testing.assert_close(played(loaded, episode()), played(from_lerobot(theirs, ACTION, keys=KEYS), episode()))


def test_a_policy_of_one_entry_sees_all_of_the_observation() -> None:
    lerobot = real("lerobot.policies.sac.modeling_sac")
    config = lerobot.SACConfig(
        input_features=features(("observation.state", "STATE", OBS)),
        output_features=features(("action", "ACTION", ACTION)),
        dataset_stats={
            name: {"min": [-1.0] * n, "max": [1.0] * n} for name, n in ((STATE[0], OBS), ("action", ACTION))
        },
        device="cpu",
    )
    check_contract(as_policy(lerobot.SACPolicy(config), ACTION), random=True)


def test_wrong_policies_are_refused() -> None:
    with pytest.raises(UserError, match=r"observation.state \(4\), observation.environment_state \(2\).*keys="):
        as_policy(act(), ACTION)
    with pytest.raises(UserError, match="keys has no observation"):
        from_lerobot(act(), ACTION, keys={SCENE[0]: slice(0, 2)})
    with pytest.raises(UserError, match=r"shape \(2,\), 4 are needed"):
        from_lerobot(act(), 4, keys=KEYS)
    broken = act()
    torch.nn.init.constant_(next(getattr(broken, "normalize_inputs", broken).parameters()), float("nan"))
    with pytest.raises(UserError, match="is not finite"):
        as_policy(broken, ACTION)
    with pytest.raises(UserError, match="has the size 6"):
        played(from_lerobot(act(), ACTION, keys=KEYS | {SCENE[0]: slice(6, 9)}), episode())


# ---- newer versions, which normalise outside of the policy -------------------------------------------------------


class Step:
    """As `NormalizerProcessorStep` and, of actions, `UnnormalizerProcessorStep`: statistics under flat names."""

    def __init__(self, **changes: float) -> None:
        self._tensor_stats = statistics(**changes)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{name}.{what}": x for name, stats in self._tensor_stats.items() for what, x in stats.items()}

    def __call__(self, data: Any) -> Any:
        if isinstance(data, Tensor):
            return data * self._tensor_stats["action"]["std"] + self._tensor_stats["action"]["mean"]
        return {name: (x - (own := self._tensor_stats[name])["mean"]) / own["std"] for name, x in data.items()}


class Pipeline:
    """As `PolicyProcessorPipeline`: from a batch to a batch, or from an action to an action."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps

    def __call__(self, data: Any) -> Any:
        for step in self.steps:
            data = step(data)
        return data


class Chunks(nn.Module):
    """A `PreTrainedPolicy` without normalisation, which hands out chunks from `_action_queue`, as `ACTPolicy` does."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.linear, self.noise = nn.Linear(OBS, CHUNK * ACTION), noise
        entries = {name: SimpleNamespace(shape=(size,)) for name, _, size in (STATE, SCENE)}
        self.config = SimpleNamespace(
            input_features=entries, output_features={"action": SimpleNamespace(shape=(ACTION,))}
        )
        self.reset()

    def reset(self) -> None:
        self._action_queue: deque[Tensor] = deque(maxlen=CHUNK)

    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        seen = torch.cat([batch[STATE[0]], batch[SCENE[0]]], dim=-1)
        actions = 0.5 * torch.tanh(self.linear(seen).unflatten(-1, (CHUNK, ACTION)))
        return actions + self.noise * torch.randn_like(actions)

    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        if not self._action_queue:
            self._action_queue.extend(self.predict_action_chunk(batch).transpose(0, 1))
        return self._action_queue.popleft()


def expected(policy: Chunks, obs: Tensor) -> Tensor:
    """(T, Do) -> (T, Da): every fourth observation is looked at, standardised; actions are scaled back."""
    seen = (obs[::CHUNK] - 0.1) / 0.8
    chunks = 0.5 * torch.tanh(policy.linear(seen).unflatten(-1, (CHUNK, ACTION)))
    return (chunks * 0.8 + 0.1).flatten(0, 1).clamp(-1, 1).detach()


def test_processors_around_a_policy() -> None:
    """Names as in LeRobot behind its pull request 1452 (0.4.0 and later)."""
    theirs = Chunks()
    policy = from_lerobot(theirs, ACTION, keys=KEYS, preprocessor=Pipeline(Step()), postprocessor=Pipeline(Step()))
    check_contract(policy, asked_per_episode=STEPS // CHUNK)
    torch.testing.assert_close(played(policy, episode())[:, 0], expected(theirs, episode()))


@pytest.mark.parametrize("where", ["preprocessor", "postprocessor"])
def test_statistics_of_processors_must_be_numbers(where: str) -> None:
    with pytest.raises(UserError, match=r"observation\.state\.std of the policy is not finite"):
        from_lerobot(Chunks(), ACTION, keys=KEYS, **{where: Pipeline(Step(), Step(std=float("inf")))})


def test_a_folder_with_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `lerobot.policies.factory` has it at 01f50c3 (behind 0.4)."""
    theirs, asked = Chunks(), []

    class Config:
        @staticmethod
        def from_pretrained(path: Path) -> SimpleNamespace:
            return SimpleNamespace(path=path, device=None)

    class Policy:
        @staticmethod
        def from_pretrained(path: Path, *, config: Any) -> Chunks:
            assert (path, config.path, config.device) == (tmp_path, tmp_path, "cpu")
            return theirs

    def make_pre_post_processors(
        policy_cfg: Any, pretrained_path: str | None = None, pretrained_revision: str | None = None, **how: Any
    ) -> tuple[Pipeline, Pipeline]:
        asked.append((policy_cfg.path, pretrained_path, pretrained_revision, how))
        return Pipeline(Step()), Pipeline(Step())

    factory = SimpleNamespace(get_policy_class={"act": Policy}.get, make_pre_post_processors=make_pre_post_processors)
    modules = {"lerobot.configs": {}, "lerobot.configs.policies": {"PreTrainedConfig": Config}}
    modules |= {"lerobot": {}, "lerobot.policies": {"factory": factory}}
    for name, contents in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**contents))
    (tmp_path / "config.json").write_text(json.dumps({"type": "act", "input_features": {}}))
    bare = load_lerobot(tmp_path, ACTION, device=torch.device("cpu"), keys=KEYS)
    assert asked == []
    (tmp_path / "policy_preprocessor.json").write_text("{}")
    policy = load_lerobot(tmp_path, ACTION, device=torch.device("cpu"), keys=KEYS)
    overrides = {"preprocessor_overrides": {"device_processor": {"device": "cpu"}}}
    assert asked == [(tmp_path, str(tmp_path), None, overrides)]
    torch.testing.assert_close(played(policy, episode())[:, 0], expected(theirs, episode()))
    assert not torch.allclose(played(bare, episode())[:, 0], expected(theirs, episode()), atol=1e-3)


def test_a_policy_that_draws_keeps_the_contract_and_one_that_forgets_nothing_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, questions = from_lerobot(Chunks(noise=0.1), ACTION, keys=KEYS), STEPS // CHUNK
    check_contract(policy, random=True, asked_per_episode=questions)
    monkeypatch.setattr(type(policy), "reset", lambda self, rows: None)
    with pytest.raises(AssertionError):
        check_contract(policy, random=True, asked_per_episode=questions)
