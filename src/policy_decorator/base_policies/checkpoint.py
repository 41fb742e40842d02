"""A base policy on disk: a folder that needs no unpickling to read.

policy.safetensors   parameters and buffers
policy.json          format, name, config, obs_size, action_size, task, details, parameters (their SHA-256)
                     of one that looks at pictures (format 2) also shapes, eyes
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from policy_decorator.base_policies import POLICIES, PolicyEntry, build
from policy_decorator.base_policies.answers import check_numbers
from policy_decorator.base_policies.imitate import Imitator
from policy_decorator.base_policies.seeing import SeeingPolicy
from policy_decorator.disk import atomic_bytes, disk_errors, from_json
from policy_decorator.encoders import EncoderConfig
from policy_decorator.errors import UserError, lookup

FORMAT, SEEING_FORMAT = 1, 2
CARD = "policy.json"
WEIGHTS = "policy.safetensors"


def parameter_hash(module: nn.Module | Imitator) -> str:
    """SHA-256 over name, type, shape and bytes of all parameters and buffers: equal if bit-identical."""
    assert isinstance(module, nn.Module)
    digest = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_policy(policy: Imitator, folder: str | Path, *, details: dict[str, Any]) -> None:
    """Write a policy into a folder, which is made where it does not exist.

    `details` is anything JSON can hold (how it was trained, on what); its "task", if any,
    is also put at the top.

    Raises:
        UserError: a policy that is not one of `POLICIES`, or details that JSON cannot hold.
    """
    entry = _entry_of(policy)
    card = {
        "format": SEEING_FORMAT if isinstance(policy, SeeingPolicy) else FORMAT,
        "name": entry.name,
        "config": dataclasses.asdict(policy.cfg),
        "obs_size": policy.obs_size,
        "action_size": policy.action_size,
        "task": details.get("task"),
        "details": details,
        "parameters": parameter_hash(policy),
    }
    if isinstance(policy, SeeingPolicy):
        card |= {"shapes": policy.shapes, "eyes": dataclasses.asdict(policy.eyes)}
    try:
        text = json.dumps(card, indent=2) + "\n"
    except TypeError as error:
        raise UserError(f"The details of a policy must be plain JSON values: {error}.") from None
    folder = Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
    atomic_bytes(folder / WEIGHTS, save(tensors))
    atomic_bytes(folder / CARD, text.encode())


def policy_card(folder: str | Path) -> dict[str, Any]:
    """What policy.json says.

    Raises:
        UserError: no such file, or it is not a policy's.
    """
    path = Path(folder) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no policy: {CARD} is missing. Give the folder of a saved policy.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): save the policy again.") from None
    wanted = {"format", "name", "config", "obs_size", "action_size", "parameters"}
    if not isinstance(card, dict) or not wanted <= card.keys() or not isinstance(card["config"], dict):
        raise UserError(f"{path} does not describe a policy: save the policy again.")
    if card["format"] not in (FORMAT, SEEING_FORMAT):
        raise UserError(
            f"{path} has format {card['format']}, this version reads {FORMAT} and {SEEING_FORMAT}: use the version "
            "that wrote it."
        )
    return card


def load_policy(folder: str | Path) -> Imitator:
    """A saved policy on the CPU, in evaluation mode.

    Raises:
        UserError: a missing, corrupt or foreign file, an unknown policy name, or numbers that are none.
    """
    folder = Path(folder)
    card = policy_card(folder)
    entry = lookup("base policy", str(card["name"]), POLICIES)
    try:
        cfg = entry.config(**card["config"])
        with torch.random.fork_rng(devices=[]):  # the initialisation is overwritten: leave no trace in the random state
            policy = build(entry.name, int(card["obs_size"]), int(card["action_size"]), cfg, **_sight(card))
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise UserError(f"The config in {folder / CARD} does not build a {entry.name!r} policy: {error}") from None
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no parameters: {WEIGHTS} is missing. Save the policy again.")
    try:
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error}): save the policy again.") from None
    if parameter_hash(policy) != card["parameters"]:
        raise UserError(f"{folder / WEIGHTS} is not the file that {CARD} describes: save the policy again.")
    check_numbers(cast(nn.Module, policy), str(folder / WEIGHTS))
    policy.train(False)
    return policy


def _sight(card: dict[str, Any]) -> dict[str, Any]:
    """What `build` must know of pictures."""
    if card["format"] == FORMAT:
        return {}
    shapes = {name: tuple(shape) for name, shape in card["shapes"].items()}
    return {"shapes": shapes, "eyes": from_json(EncoderConfig, card["eyes"], "eyes")}


def _entry_of(policy: Imitator) -> PolicyEntry:
    cfg = getattr(policy, "cfg", None)
    for entry in POLICIES.values():
        if type(cfg) is entry.config and isinstance(policy, nn.Module):
            return entry
    raise UserError(f"Only the policies {', '.join(sorted(POLICIES))} can be saved, not a {type(policy).__name__}.")
