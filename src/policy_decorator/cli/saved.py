"""Policies on disk as the commands meet them: a base policy, a `refined/` folder or the run that holds one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from policy_decorator.base_policies.checkpoint import load_policy, policy_card
from policy_decorator.base_policies.places import from_place, is_place
from policy_decorator.disk import read_json
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError
from policy_decorator.memory import AnyPolicy
from policy_decorator.progress import Display
from policy_decorator.refined import Refined, to_device


@dataclass(frozen=True)
class Saved:
    """What a policy's folder says about it, read without its networks."""

    folder: Path
    kind: str
    """Name of a base policy, or "refined"."""
    task: str | None
    obs_size: int
    action_size: int
    chunk: int
    """Ta, actions per decision."""
    run: dict[str, Any]
    """The settings of the run it is the outcome of; empty for a base policy."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """(C, H, W) of the pictures it looks at."""
    place: str | None = None
    """Address or file of somebody else's policy, of which nothing is known before it is loaded: sizes are 0."""


def describe(folder: str | Path) -> Saved:
    """Raises UserError: no policy there, a damaged one, or a run that is not finished."""
    if is_place(folder):
        return Saved(Path(folder), "external", None, obs_size=0, action_size=0, chunk=1, run={}, place=str(folder))
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is {'not a policy' if folder.exists() else 'missing'}: give the folder of one, a file (.onnx, "
            ".pt2, .ts, .pt) or an address (ws://host:port); a function is refined from Python: decorate(fn, task)."
        )
    inner = folder / "refined" if (folder / "refined" / "refined.json").exists() else folder
    if (inner / "refined.json").exists():
        return _describe_refined(folder, inner)
    if (folder / "config.json").exists():
        raise UserError(f"The run {folder} is not finished. Continue it: pidec refine --out {folder} --resume")
    card = policy_card(folder)
    sizes = int(card["obs_size"]), int(card["action_size"])
    chunk = int(card["config"].get("chunk", 1))
    return Saved(folder, str(card["name"]), card.get("task"), *sizes, chunk=chunk, run={}, shapes=_shapes(card))


def check_fits(saved: Saved, task: Task, display: Display) -> None:
    """Refuses, with a UserError, a policy of other sizes or pictures; warns of one made for another task."""
    if saved.place is not None:
        return  # the adapter looks at that, as soon as it is asked
    if saved.shapes != task.shapes:
        raise UserError(
            f"The policy in {saved.folder} looks at {saved.shapes or 'no pictures'}, {task.name} shows "
            f"{task.shapes or 'none'} (channels, height, width)."
        )
    theirs, ours = (saved.obs_size, saved.action_size), (task.obs_size, task.action_size)
    if theirs != ours:
        made_for = f" It was made for {saved.task}." if saved.task else ""
        raise UserError(
            f"The policy in {saved.folder} takes {theirs[0]} observations and gives {theirs[1]} actions, "
            f"{task.name} has {ours[0]} and {ours[1]}.{made_for}"
        )
    if saved.task not in (None, task.name, task.demos_of):
        display.say(f"Warning: the policy in {saved.folder} was made for {saved.task}, not for {task.name}.")


def load(saved: Saved, device: torch.device, action_size: int | None = None) -> tuple[AnyPolicy, AnyPolicy | None]:
    """The base policy and, where there is one, the refined policy. Raises UserError for damaged files.

    `action_size` is the task's, which somebody else's policy has to have.
    """
    if saved.place is not None:
        return from_place(saved.place, action_size or saved.action_size, device), None
    if saved.kind != "refined":
        policy = load_policy(saved.folder)
        policy.to(device)
        return policy, None
    decorated = Refined.load(saved.folder, policy=_outside(saved, device)).policy
    to_device(decorated, device)
    return decorated.base, decorated


def _describe_refined(folder: Path, inner: Path) -> Saved:
    card = read_json(inner / "refined.json")
    try:
        chunk, action_size = card["chunk"]
        sizes = card["obs_size"], action_size, chunk
        return Saved(folder, "refined", card["task"], *sizes, _run_of(inner), _shapes(card))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{inner / 'refined.json'} does not describe a refined policy.") from None


def _shapes(card: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in card.get("shapes", {}).items()}


def _outside(saved: Saved, device: torch.device) -> AnyPolicy | None:
    """A base policy that is not stored with its residual, but that the run's settings say where to find."""
    inner = saved.folder if (saved.folder / "refined.json").exists() else saved.folder / "refined"
    place = saved.run.get("policy")
    if read_json(inner / "refined.json")["base"] != "external" or not place:
        return None
    if not is_place(place) and not Path(place).is_dir():
        return None
    base, refined = load(describe(place), device, saved.action_size)
    return refined or base


def _run_of(inner: Path) -> dict[str, Any]:
    config = inner.absolute().parent / "config.json"
    return read_json(config) if inner.name == "refined" and config.exists() else {}
