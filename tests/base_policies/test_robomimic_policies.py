"""Real rollout policies of robomimic as base policies."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import ACTION, OBS, STEPS, check_contract, episode, played, real, remembers

from policy_decorator.base_policies.external import as_policy
from policy_decorator.base_policies.robomimic import from_robomimic, load_robomimic
from policy_decorator.errors import UserError

KEYS = {"robot0_eef_pos": slice(0, 3), "object": slice(3, OBS)}
SHAPES = OrderedDict(robot0_eef_pos=[3], object=[3])


def checkpoint(*, recurrent: bool, standardized: bool = False) -> dict[str, Any]:
    """What robomimic's training saves, of an untrained policy."""
    real("robomimic.utils.file_utils")
    from robomimic.algo import algo_factory  # pyright: ignore[reportMissingImports]
    from robomimic.config import config_factory  # pyright: ignore[reportMissingImports]
    from robomimic.utils.obs_utils import initialize_obs_utils_with_config  # pyright: ignore[reportMissingImports]

    config = config_factory("bc")
    with config.values_unlocked():
        config.observation.modalities.obs.low_dim = list(SHAPES)
        config.algo.actor_layer_dims = (16,)
        config.algo.rnn.enabled = recurrent
        config.algo.rnn.hidden_dim = 8
        config.algo.rnn.horizon = 5
        config.train.hdf5_normalize_obs = standardized
    initialize_obs_utils_with_config(config)
    torch.manual_seed(0)
    algo = algo_factory("bc", config, obs_key_shapes=SHAPES, ac_dim=ACTION, device=torch.device("cpu"))
    for parameter in algo.nets.parameters():  # untrained it hardly moves
        parameter.data.mul_(2)
    saved: dict[str, Any] = {
        "model": algo.serialize(),
        "config": config.dump(),
        "algo_name": "bc",
        "env_metadata": {"env_name": "Lift"},
        "shape_metadata": {"ac_dim": ACTION, "all_shapes": SHAPES, "all_obs_keys": list(SHAPES), "use_images": False},
    }
    if standardized:
        saved["obs_normalization_stats"] = {
            name: {"mean": np.full((1, 3), 0.1), "std": np.full((1, 3), 2.0)} for name in SHAPES
        }
    return saved


def rollout_policy(**how: bool) -> Any:
    from robomimic.utils.file_utils import policy_from_checkpoint  # pyright: ignore[reportMissingImports]

    return policy_from_checkpoint(ckpt_dict=checkpoint(**how), device=torch.device("cpu"))[0]


@pytest.mark.parametrize("recurrent", [False, True])
def test_contract(recurrent: bool) -> None:
    real("robomimic.utils.file_utils")
    policy = from_robomimic(rollout_policy(recurrent=recurrent), ACTION, keys=KEYS)
    check_contract(policy)
    assert remembers(policy) == recurrent


def test_it_does_what_the_policy_does_alone() -> None:
    real("robomimic.utils.file_utils")
    theirs, obs = rollout_policy(recurrent=True, standardized=True), episode()
    ours = played(from_robomimic(theirs, ACTION, keys=KEYS), obs)[:, 0]
    theirs.start_episode()
    alone = np.stack([theirs({name: o[part].numpy() for name, part in KEYS.items()}) for o in obs])
    np.testing.assert_allclose(ours.numpy(), alone.clip(-1, 1), atol=1e-6)


@pytest.mark.parametrize("standardized", [False, True])
def test_a_checkpoint_is_read_without_unpickling(standardized: bool, tmp_path: Path) -> None:
    saved = checkpoint(recurrent=True, standardized=standardized)
    torch.save(saved, tmp_path / "model.pth")
    policy = load_robomimic(tmp_path / "model.pth", ACTION, device=torch.device("cpu"), keys=KEYS)
    theirs = from_robomimic(rollout_policy(recurrent=True, standardized=standardized), ACTION, keys=KEYS)
    torch.testing.assert_close(played(policy, episode()), played(theirs, episode()))


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("trapped"),))


def test_a_pickle_that_does_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "extra": Trap()}, "model.pth")
    with pytest.raises(UserError, match=r"(?s)is not read.*policy_from_checkpoint"):
        load_robomimic(Path("model.pth"), ACTION, device=torch.device("cpu"))
    assert not Path("trapped").exists()
    torch.save({"weights": torch.zeros(1)}, "other.pth")
    with pytest.raises(UserError, match="no checkpoint of robomimic"):
        load_robomimic(Path("other.pth"), ACTION, device=torch.device("cpu"))


def test_wrong_policies_are_refused() -> None:
    real("robomimic.utils.file_utils")
    theirs = rollout_policy(recurrent=False, standardized=True)
    with pytest.raises(UserError, match=r"robot0_eef_pos \(3\), object \(3\).*keys="):
        as_policy(theirs, ACTION)
    with pytest.raises(UserError, match="answers with 2 actions, 4 are needed"):
        from_robomimic(theirs, 4, keys=KEYS)
    theirs.obs_normalization_stats["object"]["std"][:] = np.nan
    with pytest.raises(UserError, match=r"statistics of object.*not finite"):
        from_robomimic(theirs, ACTION, keys=KEYS)
    assert json.loads(checkpoint(recurrent=False)["config"])["algo_name"] == "bc"
    assert STEPS > 5, "an episode is longer than the recurrent policy's horizon"
