"""Real policies of LeRobot as base policies."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import ACTION, OBS, STEPS, check_contract, episode, played, real, remembers
from torch import Tensor

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
    torch.nn.init.constant_(next(broken.normalize_inputs.buffer_observation_state.parameters()), float("nan"))
    with pytest.raises(UserError, match="is not finite"):
        as_policy(broken, ACTION)
    with pytest.raises(UserError, match="has the size 6"):
        played(from_lerobot(act(), ACTION, keys=KEYS | {SCENE[0]: slice(6, 9)}), episode())
