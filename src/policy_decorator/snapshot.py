"""Everything an interrupted run needs to go on as if it had not been interrupted.

Networks, targets, optimisers, replay, pending n-step returns, counts, random state, and the episodes in flight
(as seed and actions, from which any deterministic simulator brings them back). What the base policy remembers of
those is kept where the policy offers it; where it does not, they are given up and new ones begin.
"""

import pickle
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from policy_decorator import randomness
from policy_decorator.disk import atomic_file
from policy_decorator.errors import UserError
from policy_decorator.memory import kept
from policy_decorator.methods.problem import Learner, Run


@runtime_checkable
class Decides(Protocol):
    """A gate that depends on more than the step."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


COUNTS = ("step", "decisions", "base_queries", "episodes")


def capture(run: Run) -> dict[str, Any]:
    """The run's state as nested dicts and lists of tensors and numbers."""
    c, learner = run.collector, run.learner
    return {
        "learner": {name: part.state_dict() for name, part in _parts(learner).items()},
        "tensors": {name: x.detach() for name, x in _tensors(learner).items()},
        "updates": learner.updates,
        "offline_updates": run.offline.updates if run.offline else 0,
        "explorer": {"asked": run.explorer.asked, "noise": run.explorer.noise},
        "counts": {name: getattr(c, name) for name in COUNTS},
        "action": c.action,
        "window": c.window,
        "episode_step": c.episode_step,
        "gate": c.gate.state() if isinstance(c.gate, Decides) else None,
        "env": c.env.state(),
        "memory": kept(c.asked),
        "replay": run.replay.state(),
        "intake": run.intake.state(),
        "monitor": run.monitor.state(),
        "reward": run.reward.state() if run.reward is not None else None,
        **randomness.state(),
    }


def restore(run: Run, state: dict[str, Any]) -> None:
    """Bring `run`, freshly built from the same configuration, to `state`."""
    c, learner = run.collector, run.learner
    for name, part in _parts(learner).items():
        part.load_state_dict(state["learner"][name])
    for name, x in _tensors(learner).items():
        x.detach().copy_(state["tensors"][name])
    learner.updates = state["updates"]
    if run.offline is not None:
        run.offline.learner.updates = state["offline_updates"]
    run.explorer.asked, run.explorer.noise = state["explorer"]["asked"], state["explorer"]["noise"]
    for name in COUNTS:
        setattr(c, name, state["counts"][name])
    c.action, c.window, c.episode_step = state["action"], state["window"], state["episode_step"]
    if isinstance(c.gate, Decides):
        c.gate.restore(state["gate"])
    c.env.restore(state["env"])
    run.replay.restore(state["replay"], c.action.device)
    if remembers(state):
        cast(Any, c.asked).restore(state.get("memory", {}))
        run.intake.restore(state["intake"])
    else:
        c.start(int(state["env"]["next_seed"]))
    run.monitor.restore(state["monitor"])
    if run.reward is not None:
        run.reward.restore(state["reward"])
    randomness.restore(state)


def remembers(state: dict[str, Any]) -> bool:
    """Whether the episodes in flight can go on; not where only the lost process knew what the base remembers."""
    return state.get("memory", {}) is not None


def _parts(learner: Learner) -> dict[str, Any]:
    """Its networks and optimisers."""
    return {name: part for name, part in vars(learner).items() if hasattr(part, "state_dict")}


def _tensors(learner: Learner) -> dict[str, Tensor]:
    """What it learns beside networks, such as a temperature."""
    return {name: x for name, x in vars(learner).items() if isinstance(x, Tensor)}


def write(path: Path, state: dict[str, Any]) -> None:
    """Replace the file at `path` in one move. Raises UserError when the disk is full; the old file then stays."""
    with atomic_file(path) as temporary:
        try:
            torch.save(_plain(state), temporary)
        except RuntimeError as error:  # torch hides a full disk in a RuntimeError
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else error) from None


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """Tensors and numbers only (`weights_only`), on `device` all but the replay, which may be as large as its memory.

    Raises UserError when there is nothing to resume from.
    """
    if not path.exists():
        raise UserError(f"There is no checkpoint {path} to resume from: the run was stopped before its first one.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: _restored(x, torch.device("cpu") if name == "replay" else device) for name, x in state.items()}
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"The checkpoint {path} is damaged and cannot be resumed: {error}") from None


def _plain(x: Any) -> Any:
    """`x` with every TensorDict as a dict that says so: `weights_only` admits no other classes."""
    if hasattr(x, "batch_size"):
        return {"batch_size": list(x.batch_size), "tensors": dict(x.items())}
    if isinstance(x, dict):
        return {name: _plain(y) for name, y in x.items()}
    return type(x)(_plain(y) for y in x) if isinstance(x, (list, tuple)) else x


def _restored(x: Any, device: torch.device) -> Any:
    """What `_plain` made it of, on `device`."""
    if isinstance(x, dict):
        if x.keys() == {"batch_size", "tensors"}:
            from tensordict import TensorDict

            tensors = {name: y.to(device) for name, y in x["tensors"].items()}
            return TensorDict(tensors, batch_size=x["batch_size"], device=device)
        return {name: _restored(y, device) for name, y in x.items()}
    if isinstance(x, Tensor):
        return x.to(device)
    return type(x)(_restored(y, device) for y in x) if isinstance(x, (list, tuple)) else x
