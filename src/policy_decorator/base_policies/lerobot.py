"""A policy of LeRobot (`select_action`, `reset`) as a base policy, its queues kept for every row.

Older versions standardise inside the policy, newer ones in a pre- and a postprocessor that are saved beside it. Before
either, LeRobot makes real numbers in [0, 1] of pictures (`preprocess_observation` of lerobot/envs/utils.py).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policy_decorator.base_policies.answers import check_numbers, check_values, device_of
from policy_decorator.base_policies.entries import Keys, entries_of, scaled, to_all
from policy_decorator.base_policies.networks import check_evaluating, network_of
from policy_decorator.base_policies.rowwise import Rowwise
from policy_decorator.disk import read_json
from policy_decorator.errors import UserError


def from_lerobot(
    policy: Any,
    action_size: int,
    *,
    keys: Keys | None = None,
    preprocessor: Any = None,
    postprocessor: Any = None,
    obs_size: int | None = None,
) -> Rowwise:
    """A LeRobot policy with a memory for every row; rows are asked one after the other.

    Args:
        keys: its entries ("observation.state", ...) as parts of the observation; None: all of it, where it has one.
        preprocessor, postprocessor: those of newer versions (`make_pre_post_processors`).

    Raises:
        UserError: entries that nobody named, statistics that are not finite, training mode, actions of another
            size.
    """
    check_numbers(policy)
    for step in (*getattr(preprocessor, "steps", ()), *getattr(postprocessor, "steps", ())):
        check_values(step.state_dict().items(), "the policy")
    check_evaluating(network_of(policy))
    config, device = policy.config, device_of(policy) or torch.device("cpu")
    answered = next(iter(getattr(config, "output_features", {}).values()), None)
    if answered is not None and tuple(answered.shape) != (action_size,):
        raise UserError(
            f"The LeRobot policy answers with actions of shape {tuple(answered.shape)}, {action_size} are needed: is "
            "it another task's?"
        )
    sizes = {name: feature.shape[0] for name, feature in config.input_features.items()}
    named = to_all(sizes, keys, obs_size, "the LeRobot policy")

    def begin() -> None:
        policy.reset()

    def choose(obs: Tensor) -> Tensor:
        batch = {name: _batched(value, device) for name, value in scaled(entries_of(obs, named)).items()}
        action = policy.select_action(batch if preprocessor is None else preprocessor(batch))  # (1, Da)
        return (action if postprocessor is None else postprocessor(action))[0]

    return Rowwise(policy, action_size, begin, choose, thinks=lambda: not _queued(policy))


def load_lerobot(folder: Path, action_size: int, *, device: torch.device, keys: Keys | None = None) -> Rowwise:
    """The folder that `save_pretrained` wrote: safetensors and JSON. Raises UserError without LeRobot."""
    kind = read_json(folder / "config.json").get("type")
    try:
        from lerobot.configs.policies import PreTrainedConfig  # pyright: ignore[reportMissingImports]
        from lerobot.policies import factory  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{folder} holds a LeRobot policy, and LeRobot cannot be imported ({error}). Install it, or serve it "
            "from the environment where it runs: pidec refine --policy ws://HOST:PORT"
        ) from None
    policy_class = factory.get_policy_class(kind)  # makes its config known, too
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = str(device)
    policy = policy_class.from_pretrained(folder, config=config)
    before = after = None
    if (folder / "policy_preprocessor.json").exists():
        overrides = {"device_processor": {"device": str(device)}}
        before, after = factory.make_pre_post_processors(config, str(folder), preprocessor_overrides=overrides)
    return from_lerobot(policy, action_size, keys=keys, preprocessor=before, postprocessor=after)


def is_lerobot(policy: Any) -> bool:
    """Whether an object is to be asked as LeRobot's policies are."""
    asked = all(callable(getattr(policy, name, None)) for name in ("select_action", "reset"))
    return asked and hasattr(policy, "config")


def is_lerobot_folder(folder: Path) -> bool:
    """Whether `save_pretrained` wrote it."""
    return (folder / "config.json").is_file() and "input_features" in read_json(folder / "config.json")


def _batched(value: Any, device: torch.device) -> Any:
    return value[None].to(device) if isinstance(value, Tensor) else value


def _queued(policy: Any) -> bool:
    """Whether actions of an earlier answer are left."""
    queue = getattr(policy, "_action_queue", None)
    if queue is None:
        queue = (getattr(policy, "_queues", None) or {}).get("action", ())
    return len(queue) > 0
