"""Residual and critics of tasks that show pictures.

pictures    a CNN of their own, on raw images: the base may be a black box. The replay holds uint8, and every
            picture is shifted at random whenever it is drawn from there. As in DrQ-v2 (arXiv:2107.09645) the CNN is
            learned by the critics' loss alone, the actor takes what it says, and targets read it as it is now
embedding   what the frozen base makes of them (`base.embed`): MLPs on features, which are all that the replay holds

frames (B,) -> [state, features] (B, Do + F); from there on everything is as it is without pictures
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from policy_decorator import machine
from policy_decorator.chunks import unqueued
from policy_decorator.encoders import Encoder, Shapes
from policy_decorator.errors import UserError
from policy_decorator.rl.compiled import Metrics
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.descent import Descent
from policy_decorator.rl.replay import NStep, Pictures
from policy_decorator.rl.sac import SAC
from policy_decorator.rl.selection import Proposer
from policy_decorator.rl.td3 import TD3
from policy_decorator.types import Composition, Transition

Eye = Callable[[Tensor], Tensor]
"""Frames (B,) with pictures -> (B, Do + F)."""


class Embeds(Protocol):
    """A base policy that says what it makes of frames."""

    def embed(self, frames: Tensor) -> Tensor: ...  # (B,) with pictures -> (B, Do + F), beginning with the state


@dataclass(frozen=True)
class Embedding:
    """The frozen base's eye: never copied, never saved with the residual."""

    base: Embeds
    size: int

    def __call__(self, frames: Tensor) -> Tensor:
        return self.base.embed(frames)

    def __deepcopy__(self, memo: Any) -> "Embedding":
        return self


@dataclass(frozen=True)
class OfFrames:
    """A composition where observations are frames: the actor is shown them with the base's action as `base`."""

    inner: Composition

    @property
    def bound(self) -> float | None:
        """Of the residual, where it is one."""
        return getattr(self.inner, "bound", None)

    def actor_input(self, obs: Tensor, base: Tensor) -> Tensor:
        frames: Any = obs
        return frames.copy().set("base", base)

    def execute(self, base: Tensor, raw: Tensor) -> Tensor:
        return self.inner.execute(base, raw)

    def critic_action(self, base: Tensor, raw: Tensor) -> Tensor:
        return self.inner.critic_action(base, raw)

    def idle(self, base: Tensor) -> Tensor:
        return self.inner.idle(base)


class SeeingActor(nn.Module):
    """An actor behind an eye; what it sees are frames with the base's action. An eye that is learned is part of it."""

    def __init__(self, eye: Eye, actor: Proposer, composition: Composition) -> None:
        super().__init__()
        self.eye, self.actor, self.composition = eye, actor, composition

    @property
    def chunk_shape(self) -> tuple[int, int]:
        return self.actor.chunk_shape

    def forward(self, seen: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inner = self._inner(seen)
        return self.actor(inner, self.actor.fresh_noise(inner) if noise is None else noise)

    def fresh_noise(self, seen: Tensor) -> Tensor:
        frames: Any = seen
        return self.actor.fresh_noise(frames["base"])

    def mode(self, seen: Tensor) -> Tensor:
        return self.actor.mode(self._inner(seen))

    def _inner(self, seen: Tensor) -> Tensor:
        frames: Any = seen
        return self.composition.actor_input(self.eye(seen), frames["base"])


def through(eye: Eye | None, actor: Any, composition: Composition) -> tuple[Any, Composition]:
    """Actor and composition for observations with pictures; as they are where there is no eye."""
    return (actor, composition) if eye is None else (SeeingActor(eye, actor, composition), OfFrames(composition))


class Sees:
    """A learner whose batches hold pictures: it learns `encoder` with the critics, and its losses see features."""

    # Differs from the released code: that learns no CNN online and stores the base's embeddings (`Embedding` here).
    encoder: Encoder

    def __post_init__(self) -> None:
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]
        learner: Any = self
        both = [*learner.critic.parameters(), *self.encoder.parameters()]
        self.critic_opt = Descent(both, learner.cfg.lr, learner.cfg.max_grad_norm)

    def step(self, b: Transition, with_actor: bool) -> Metrics:
        """As the learner's, on pictures that are shifted at random."""
        with torch.no_grad():
            next_obs = self.encoder(b.next_obs, shifted=True)
        b = b._replace(obs=self.encoder(b.obs, shifted=True), next_obs=next_obs)
        return super().step(b, with_actor)  # pyright: ignore[reportAttributeAccessIssue]

    def actor_loss(self, b: Transition) -> Any:
        """As the learner's; nothing of it reaches the encoder."""
        return super().actor_loss(b._replace(obs=b.obs.detach()))  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class SeeingSAC(Sees, SAC):
    encoder: Encoder = field(kw_only=True)


@dataclass
class SeeingTD3(Sees, TD3):
    encoder: Encoder = field(kw_only=True)


class EmbeddedNStep(NStep):
    """n-step returns of transitions whose frames become embeddings first."""

    def __init__(self, n: int, gamma: float, eye: Eye) -> None:
        super().__init__(n, gamma)
        self.eye = eye

    @torch.no_grad()
    def push(self, t: Transition, done: Tensor) -> Transition | None:
        return super().push(t._replace(obs=self.eye(t.obs), next_obs=self.eye(t.next_obs)), done)


def check_room(shapes: Shapes, decisions: int, device: torch.device) -> None:
    """Raises UserError where the pictures of so many decisions do not fit into memory, before hours are spent."""
    frame = sum(math.prod(shape) * (2 if name == "depth" else 1) for name, shape in shapes.items())  # bytes
    need, free = frame * Pictures(decisions).room, machine.free_memory(device)
    if need > free:
        raise UserError(
            f"A replay of {decisions:,} decisions would hold {need / 1e9:.1f} GB of pictures, and {free / 1e9:.1f} GB "
            f"are free on {device}. Lower replay_capacity, or take sees = embedding."
        )


CHUNK = 1024
"""Frames that are embedded together."""


def seen(d: Demonstrated, eye: Eye | None) -> tuple[Demonstrated, Tensor | None]:
    """Demonstrations as learners see them and, where they are to learn from pictures, the frames that have them."""
    frames: Any = d.obs
    if eye is None:
        return d, None
    if isinstance(eye, Encoder):
        return replace(d, obs=frames.select("state", "frame")), frames
    with torch.no_grad():
        return replace(d, obs=torch.cat([eye(part) for part in frames.split(CHUNK)])), None


def embedder(base: Any) -> Any:
    """The base, out of its queue of chunks, if it says what it makes of pictures; None if it does not."""
    inner = unqueued(base)
    return inner if callable(getattr(inner, "embed", None)) else None


def embedding_of(base: Any, frames: Tensor) -> Embedding:
    """The base's eye, tried out on frames (B,); raises UserError where it has none, or not as it should be."""
    base = embedder(base)
    if base is None:
        raise UserError(
            "sees = embedding needs a base policy that says what it makes of pictures, embed(frames) -> (B, features). "
            "This one does not: take sees = pictures."
        )
    known: Any = frames
    with torch.no_grad():
        answer = base.embed(frames)
    state = known["state"]
    if answer.ndim != 2 or len(answer) != len(state) or not torch.equal(answer[:, : state.shape[1]], state):
        raise UserError(
            f"The base's embedding has shape {tuple(answer.shape)} for {len(state)} frames: it must be (B, Do + F), "
            f"beginning with the state as it was given, of size {state.shape[1]}."
        )
    if not answer.isfinite().all():
        raise UserError("The base's embedding is not finite.")
    return Embedding(base, answer.shape[1])
