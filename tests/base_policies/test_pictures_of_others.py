"""Pictures as LeRobot's and robomimic's policies want them: stubs that say what they were given."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policy_decorator.base_policies.entries import Entry, scaled
from policy_decorator.base_policies.lerobot import from_lerobot
from policy_decorator.base_policies.robomimic import from_robomimic
from policy_decorator.envs.images import together

ACTION = 2
SHAPES = {"image": (3, 4, 4), "depth": (1, 4, 4), "state": (5,)}
KEYS = {"image": Entry("rgb"), "depth": Entry("depth"), "state": slice(None)}


class LeRobots(nn.Module):
    """As LeRobot's policies are asked: with a batch of one."""

    def __init__(self, given: list[Any]) -> None:
        super().__init__()
        features = {name: SimpleNamespace(shape=shape) for name, shape in SHAPES.items()}
        self.config, self.given = SimpleNamespace(input_features=features), given

    def reset(self) -> None:
        self._action_queue: list[Any] = []

    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        self.given.append({name: value[0].numpy() for name, value in batch.items()})
        return torch.zeros(1, ACTION)


class Robomimics:
    """As robomimic's `RolloutPolicy`: one observation, in numpy."""

    obs_normalization_stats = None

    def __init__(self, given: list[Any]) -> None:
        self.given = given
        self.policy = SimpleNamespace(ac_dim=ACTION, nets=nn.ModuleDict(), obs_shapes=SHAPES)

    def start_episode(self) -> None: ...

    def __call__(self, ob: dict[str, np.ndarray]) -> np.ndarray:
        self.given.append(ob)
        return np.zeros(ACTION)


def lerobots(given: list[Any], keys: Any) -> Any:
    return from_lerobot(LeRobots(given), ACTION, keys=keys)


def robomimics(given: list[Any], keys: Any) -> Any:
    return from_robomimic(Robomimics(given), ACTION, keys=keys)


@pytest.mark.parametrize(
    "keys", [KEYS, lambda seen: {"image": seen["rgb"], "depth": seen["depth"], "state": seen["state"]}]
)
@pytest.mark.parametrize("made", [lerobots, robomimics])
def test_they_are_given_real_numbers(made: Callable[..., Any], keys: Any) -> None:
    given: list[Any] = []
    rgb = torch.arange(2 * 48, dtype=torch.uint8).reshape(2, 1, 3, 4, 4) + 150
    depth = torch.full((2, 1, 1, 4, 4), 1500, dtype=torch.int16)
    window = together({"state": torch.full((2, 1, 5), 200.0), "rgb": rgb, "depth": depth}, ndim=2)
    made(given, keys).act(window, torch.arange(2))
    for k, seen in enumerate(given):
        assert {name: x.dtype for name, x in seen.items()} == dict.fromkeys(SHAPES, np.float32)
        np.testing.assert_allclose(seen["image"], rgb[k, 0].numpy() / np.float32(255), rtol=1e-6)
        np.testing.assert_allclose(seen["depth"], 1.5)
        np.testing.assert_array_equal(seen["state"], 200.0)
    assert len(given) == 2


def test_what_is_no_picture_stays_as_it_is() -> None:
    entries = {"prompt": "reach", "token": torch.tensor([3]), "index": np.array([7]), "pixels": np.uint8([255, 0])}
    got = scaled(entries)
    assert all(got[name] is entries[name] for name in ("prompt", "token", "index"))
    assert got["pixels"].tolist() == [1.0, 0.0]
