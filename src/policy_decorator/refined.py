"""The result: a frozen base policy and its residual as one policy to act with, save and load."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from policy_decorator.base_policies import POLICIES
from policy_decorator.base_policies.checkpoint import CARD, load_policy, policy_card, save_policy
from policy_decorator.base_policies.external import as_policy
from policy_decorator.base_policies.imitate import Imitator
from policy_decorator.base_policies.networks import warn_of_another
from policy_decorator.base_policies.places import from_place, is_place
from policy_decorator.chunks import ChunkQueue, step_by_step, unqueued
from policy_decorator.decorator import DecoratedPolicy, Residual
from policy_decorator.disk import atomic_bytes, atomic_json, disk_errors, from_json, read_json
from policy_decorator.encoders import Encoder, EncoderConfig, Shapes
from policy_decorator.envs.images import frames_of
from policy_decorator.errors import UserError
from policy_decorator.memory import AnyPolicy, ask, session
from policy_decorator.methods.alone import Alone, Takeover
from policy_decorator.methods.finetuned import FineTuned, Opened
from policy_decorator.methods.jsrl import JumpStarted, Successor
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.selection import Selection, ValueSelected
from policy_decorator.rl.sight import Embedding, Eye, OfFrames, SeeingActor, embedder, through
from policy_decorator.types import Composition

FORMAT, SEEING_FORMAT = 1, 2
KINDS: Mapping[str, type[DecoratedPolicy]] = {"jump-start": JumpStarted, "alone": Alone}
"""What is combined in another way than base + residual, by its name in the card."""
Array = TypeVar("Array", np.ndarray, Tensor)


@dataclasses.dataclass
class Refined:
    """A refined policy. `act` for use in a loop, `policy.act(window)` for batches of windows."""

    policy: DecoratedPolicy
    task: str
    obs_size: int
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the run that made it: base_success, refined_success, gain, counts."""
    shapes: Shapes = dataclasses.field(default_factory=dict)
    """(C, H, W) of the pictures that the task shows beside a state of `obs_size`."""

    def __post_init__(self) -> None:
        self._session = session(self.policy)
        self.reset()

    def reset(self, rows: Any = None) -> None:
        """Forget the last episode: of every row, or of `rows` alone, whose next observation begins a new one.

        `rows`: indices, or a mask (B,) such as the `done` of a vector of environments. Raises UserError for rows that
        are not there.
        """
        self._new = torch.zeros(0, dtype=torch.long)  # whose next frame is the first
        if rows is None:
            self._window: Tensor | None = None
        elif self._window is not None:
            self._new = _indices(rows, len(self._window))
            self._session.reset(self._new)

    def act(self, obs: Array | Mapping[str, Array]) -> Array:
        """One observation (Do,) -> action (Da,), or rows (B, Do) -> (B, Da), each in its own episode.

        Of a task that shows pictures an observation is a mapping of `state` and those, as its environment has them.
        Keeps the frames the base policy looks back on: call `reset` where an episode begins. Actions are clipped to
        [-1, 1] as the environments do. Raises UserError for a wrong size or values that are not finite.
        """
        seen, given = self._rows(obs)
        single = np.ndim(given) == 1
        rows = seen[None] if single else seen  # (B, Do)
        first = torch.cat([rows[:, None]] * self.policy.context, dim=1)  # (B, To, Do)
        if self._window is None or len(self._window) != len(rows):
            self._session.reset(torch.arange(len(rows)))
            self._window = first
        else:
            self._window = torch.cat([self._window[:, 1:], rows[:, None]], dim=1)
            new = self._new.to(self._device)
            self._window[new] = first[new]
        self._new = self._new[:0]
        chunk = ask(self._session, self._window)
        if chunk.shape[1] != 1:
            raise UserError(
                "This residual answers with chunks (decide = chunk): use `policy.act(window)` and execute the chunk."
            )
        action = chunk[:, 0].clamp(-1, 1)
        action = action[0] if single else action
        return cast(Array, action.cpu().numpy() if isinstance(given, np.ndarray) else action)

    __call__ = act

    def _rows(self, obs: Any) -> tuple[Tensor, Any]:
        """The observation on the device, and the state as it was given."""
        given = obs["state"] if self.shapes and not isinstance(obs, np.ndarray | Tensor) else obs
        if isinstance(given, Mapping):
            raise UserError(
                f"{self.task} is observed as a vector: policy_decorator.make_env({self.task!r}) makes the environment "
                "as the policy sees it."
            )
        state = torch.as_tensor(given, dtype=torch.float32, device=self._device)
        if state.ndim not in (1, 2) or state.shape[-1] != self.obs_size:
            raise UserError(
                f"{self.task} has observations of size {self.obs_size}, got shape {tuple(np.shape(given))}."
            )
        if not state.isfinite().all():
            raise UserError("The observation is not finite.")
        return (frames_of(obs, state, self.shapes, self.task) if self.shapes else state), given

    @property
    def _actor(self) -> TanhGaussian:
        actor = self.policy.actor
        actor = actor.actor if isinstance(actor, SeeingActor) else actor
        return cast(TanhGaussian, actor.actor if isinstance(actor, ValueSelected) else actor)

    @property
    def _device(self) -> torch.device:
        return next(cast(torch.nn.Module, self.policy.actor).parameters()).device

    def save(self, folder: str | Path) -> None:
        """Write refined.json, residual.safetensors (a fine-tuned policy: `policy/`) and, where it can be, `base/`."""
        folder = Path(folder)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        learned = self._save_policy(folder) if isinstance(self.policy, FineTuned) else self._save_actor(folder)
        base = unqueued(self.policy.base)
        with_base = saveable(base)
        if with_base:
            save_policy(cast(Imitator, base), folder / "base", details={"task": self.task})
        atomic_json(
            folder / "refined.json",
            {
                "format": SEEING_FORMAT if self.shapes else FORMAT,
                "task": self.task,
                "obs_size": self.obs_size,
                **learned,
                "base": "base" if with_base else "external",
                "summary": self.summary,
            },
        )

    def _save_policy(self, folder: Path) -> dict[str, Any]:
        """Write the fine-tuned policy as any other of this package; its lines of the card."""
        policy = cast(Imitator, self.policy.actor)
        save_policy(policy, folder / "policy", details={"task": self.task})
        decide = "step" if self.policy.chunk == 1 else "chunk"
        sight = {"shapes": self.shapes} if self.shapes else {}
        first = {"base_steps": self.policy.base_steps} if isinstance(self.policy, Opened) else {}
        return {"kind": "fine-tuned", "chunk": (policy.chunk, policy.action_size), "decide": decide, **first, **sight}

    def _save_actor(self, folder: Path) -> dict[str, Any]:
        """Write the actor's parameters; its lines of the card."""
        actor = cast(torch.nn.Module, self.policy.actor)
        chooser = actor.actor if isinstance(actor, SeeingActor) else actor
        selection = chooser.selection if isinstance(chooser, ValueSelected) else None
        composition = self.policy.composition
        composition = composition.inner if isinstance(composition, OfFrames) else composition
        tensors = {k: v.detach().cpu().contiguous() for k, v in actor.state_dict().items()}
        atomic_bytes(folder / "residual.safetensors", save(tensors))
        return {
            "input_size": len(self._actor.standardize.mean),
            "chunk": self._actor.chunk_shape,
            "kind": next((name for name, kind in KINDS.items() if type(self.policy) is kind), "residual"),
            "residual": selection.composition if selection else composition,
            "selected_by": selection.value if selection else None,
            "nets": self._actor.cfg,
            "decide": "step" if self._actor.chunk_shape[0] == 1 else "chunk",
            **({"shapes": self.shapes, "eyes": _eyes(actor)} if self.shapes else {}),
        }

    @classmethod
    def load(cls, folder: str | Path, policy: Any = None) -> "Refined":
        """Read what `save` wrote, on the CPU. `policy`: the base, or its place, where it was not one of this package.

        Raises:
            UserError: no refined policy there, a damaged one, or a base policy that has to be given.
        """
        folder = Path(folder)
        folder = folder / "refined" if (folder / "refined" / "refined.json").exists() else folder
        card = read_json(folder / "refined.json")
        if card.get("format") not in (FORMAT, SEEING_FORMAT):
            raise UserError(f"{folder} was written in format {card.get('format')}, this version reads 1 and 2.")
        if policy is None and card["base"] == "external":
            raise UserError(f"The base policy of {folder} was yours: load it with `Refined.load(folder, policy=...)`.")
        action_size, shapes = card["chunk"][1], {name: tuple(x) for name, x in card.get("shapes", {}).items()}
        base = load(policy, action_size) if policy is not None else load_policy(folder / "base")
        if policy is not None:
            warn_of_another(base, card["summary"].get("base_parameters_sha256"))
        base = step_by_step(base) if card.get("decide") == "step" else base
        known = card["task"], card["obs_size"], card["summary"], shapes
        if card.get("kind") == "fine-tuned":
            policy = cast(Any, load_policy(folder / "policy")).requires_grad_(False)
            first, parts = card.get("base_steps", 0), (base, policy, Takeover())
            return cls(Opened(*parts, first) if first else FineTuned(*parts), *known)
        with torch.random.fork_rng(devices=[]):  # the initialisation is overwritten: leave no trace in the random state
            actor, residual = _untrained(card, shapes, unqueued(base))
        try:
            actor.load_state_dict(load_file(folder / "residual.safetensors"))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder / 'residual.safetensors'} is damaged: {error}") from None
        combined = KINDS.get(card.get("kind", "residual"), DecoratedPolicy)
        return cls(combined(base, actor.requires_grad_(False), residual), *known)


def load(policy: Any, action_size: int, device: torch.device | None = None) -> AnyPolicy:
    """A folder, a file (on `device`), an address, a callable or a policy. Raises UserError when it is none of these."""
    if isinstance(policy, str | Path) and is_place(policy):
        return from_place(policy, action_size, device)
    if isinstance(policy, str | Path):
        folder = Path(policy)
        if (folder / "refined.json").exists() or (folder / "refined" / "refined.json").exists():
            return Refined.load(folder).policy  # decorators stack
        return load_policy(folder)
    return policy.policy if isinstance(policy, Refined) else as_policy(policy, action_size)


def to_device(policy: AnyPolicy, device: torch.device) -> None:
    """Move the networks of this package, those inside a refined policy too. A user's own stay where they are."""
    if isinstance(policy, DecoratedPolicy):
        to_device(policy.base, device)
        if isinstance(policy.actor, torch.nn.Module):
            policy.actor.to(device)
    elif isinstance(policy, ChunkQueue):
        to_device(policy.base, device)
    elif saveable(policy):
        cast(torch.nn.Module, policy).to(device)


def _untrained(card: dict[str, Any], shapes: Shapes, base: Any) -> tuple[Any, Composition]:
    """The networks that a card describes, and how a `DecoratedPolicy` composes their actions."""
    nets, chunk = NetConfig(**card["nets"]), tuple(card["chunk"])
    if card.get("kind") == "jump-start":
        return Successor(card["input_size"], chunk, nets), Takeover()
    if card.get("kind") == "alone":
        return TanhGaussian(card["input_size"], chunk, nets), Takeover()
    residual = Residual(**card["residual"])
    actor, composition = TanhGaussian(card["input_size"], chunk, nets), residual
    eye, obs_size = _eye(card, shapes, base)
    if card.get("selected_by") is not None:
        scored = math.prod(chunk) * (2 if residual.critic_sees == "concat" else 1)
        critics = Critics(obs_size, scored, nets)
        actor = ValueSelected(actor, critics, Selection(residual, card["selected_by"]))
        composition = dataclasses.replace(residual, actor_sees="obs+base")
    return through(eye, actor, composition)


def _eye(card: dict[str, Any], shapes: Shapes, base: Any) -> tuple[Eye | None, int]:
    """What makes vectors of frames, as the card has it, and their size."""
    if not shapes:
        return None, card["obs_size"]
    if card["eyes"] is None:
        residual = Residual(**card["residual"])
        size = card["input_size"] - (math.prod(card["chunk"]) if residual.actor_sees == "obs+base" else 0)
        if (eyed := embedder(base)) is None:
            raise UserError("This residual sees its base's embedding, and the base policy given has none (embed).")
        return Embedding(eyed, size), size
    encoder = Encoder(from_json(EncoderConfig, card["eyes"], "eyes"), shapes, card["obs_size"])
    return encoder, encoder.size


def _eyes(actor: Any) -> EncoderConfig | None:
    """The settings of a residual's own eyes; None where it looks through the base's."""
    return actor.eye.cfg if isinstance(actor.eye, Encoder) else None


def _indices(rows: Any, n: int) -> Tensor:
    """Of rows given as indices or as a mask of all `n`. Raises UserError."""
    given = torch.as_tensor(rows, device="cpu")
    is_mask = given.dtype == torch.bool
    found = given.nonzero()[:, 0] if is_mask else given.reshape(-1).long()
    if (is_mask and given.shape != (n,)) or (len(found) and not 0 <= int(found.min()) <= int(found.max()) < n):
        raise UserError(f"reset was given rows {given.tolist()}, and the last observations had {n} rows.")
    return found


def kind_of(policy: Any) -> str:
    """Name of a base policy of this package ("bet", ...), or of the one in a folder; "" for anything else."""
    if isinstance(policy, str | Path):
        return str(policy_card(policy)["name"]) if not is_place(policy) and (Path(policy) / CARD).exists() else ""
    cfg = getattr(policy, "cfg", None) if isinstance(policy, torch.nn.Module) else None
    return next((name for name, entry in POLICIES.items() if isinstance(cfg, entry.config)), "")


def saveable(base: AnyPolicy) -> bool:
    """Whether a base policy can be written beside its residual."""
    return bool(kind_of(base))
