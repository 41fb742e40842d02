"""A problem whose pictures the frozen base has looked at already, for a method whose networks see vectors.

    frames (B, To) -> the base's encoder, which stays as it is -> windows (B, To, Do + F)

From there on all is as without pictures: replay, demonstrations and rewards hold what the encoder says.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor, nn

from policy_decorator.errors import UserError
from policy_decorator.methods.problem import Problem
from policy_decorator.rl.lora import Adapted
from policy_decorator.rl.sight import Embedding, embedder, embedding_of, seen
from policy_decorator.stepping import AroundVector, send
from policy_decorator.types import Step


@dataclass
class EmbeddedVector(AroundVector):
    """Environments whose windows are what `eye` says of their frames."""

    eye: Embedding
    _answer: Callable[[], Step] | None = field(default=None, init=False)

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        return self.eye(self.env.reset(seed, episodes))

    def step(self, action: Tensor) -> Step:
        self.send(action)
        return self.receive()

    def send(self, action: Tensor) -> None:
        self._answer = send(self.env, action)

    def receive(self) -> Step:
        """Where no episode was over, the final windows are the windows: they are looked at once."""
        assert self._answer is not None
        out = self._answer()
        window = self.eye(out.window)
        final, rows = window, out.done.nonzero()[:, 0].to(window.device)
        if len(rows):
            final = window.index_copy(0, rows, self.eye(out.final_window[rows]))
        return out._replace(window=window, final_window=final)


class WithEyes(nn.Module):
    """What was tuned behind the base's encoder, as the policy of frames that is evaluated and saved."""

    def __init__(self, eye: Embedding, actor: Adapted) -> None:
        super().__init__()
        self.eye, self.actor = eye, actor  # the eye is no module: neither copied nor saved

    def act(self, window: Tensor) -> Tensor:
        """(B, To) with pictures -> (B, Ta, Da)."""
        return self.actor.act(self.eye(window))

    def merged(self) -> nn.Module:
        """A copy of the base with what was tuned behind its encoder."""
        whole, tuned = copy.deepcopy(cast(Any, self.eye.base)), cast(Any, self.actor.merged())
        whole.policy = tuned.policy
        return whole.requires_grad_(False)


def embedded(method: str, p: Problem) -> tuple[Problem, Embedding]:
    """The same without pictures, and the eye. Raises UserError: the base has no encoder of this package."""
    base = embedder(p.base)
    if not hasattr(base, "behind"):
        raise UserError(
            f"{method} sees pictures through the encoder of a base policy of this package, and this one has none: "
            "train one (pidec imitate cnn)."
        )
    eye = embedding_of(base, p.env.reset(p.seed)[:, -1])
    shown = None if p.demonstrated is None else seen(p.demonstrated, eye)[0]
    env = EmbeddedVector(p.env, eye)
    return replace(p, env=env, base=base.behind, obs_size=eye.size, shapes={}, demonstrated=shown), eye
