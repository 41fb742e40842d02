"""How policy servers are asked: one of this package, and one of openpi's kind."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_decorator.base_policies.answers import WrongShape, shaped
from policy_decorator.base_policies.entries import Keys, entries_of
from policy_decorator.errors import UserError
from policy_decorator.serving.link import Link
from policy_decorator.serving.wire import OURS

SAME = {
    "action_size": "actions",
    "obs_size": "observations",
    "context": "context",
    "chunk": "chunk",
    "memory": "memory",
    "shapes": "pictures",
    "parameters": "hash of the parameters",
}
"""What a server of this package says of its policy, and may not change when it comes back."""


class Ours:
    """How a server of this package is asked: with windows of all rows at once, in one connection.

    `said` is what it says of its policy.
    """

    def __init__(self, link: Link, said: Mapping[str, Any]) -> None:
        self.link, self.said = link, said
        self.action_size, self.chunk, self.context = (int(said[name]) for name in ("action_size", "chunk", "context"))
        self._counted = 0  # what the server has counted in this connection

    def again(self) -> "Ours":
        """The same, in a connection of its own, which is made when it is needed."""
        return Ours(_like(self.link), self.said)

    def fingerprint(self) -> str | None:
        """The hash of what is served now. Raises UserError where anything is not as it was."""
        asked = self.again()
        asked.connect("now serves")
        asked.link.close()
        return self.said.get("parameters")

    def connect(self, verb: str = "came back with") -> None:
        """Raises UserError for a server that came back with another policy."""
        self.link.connect()
        self._counted, now = 0, self.link.metadata.get(OURS, {})
        changes = [
            f"{word} {self.said.get(name)} before, {now.get(name)} now"
            for name, word in SAME.items()
            if self.said.get(name) != now.get(name)
        ]
        if changes:
            self.link.close()
            raise UserError(
                f"The policy server at {self.link.address} {verb} another policy ({'; '.join(changes)}): serve the one "
                "from before again, or begin a new run."
            )

    def ask(self, window: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        """(K, To, Do), (K,) -> (K, Ta, Da) and the questions to its policy. Raises Lost."""
        sent = {"endpoint": "infer", "windows": _arrays(window), "rows": rows.numpy()}
        (answer,) = self.link.ask([sent])
        counted, self._counted = self._counted, int(answer["queries"])
        return _actions(answer, "actions", (len(window),), self.chunk, self.action_size), self._counted - counted

    def reset(self, rows: Tensor) -> None:
        """Raises Lost."""
        self.link.ask([{"endpoint": "reset", "rows": rows.numpy()}])


class Theirs:
    """How a server of openpi's kind is asked: about one observation at a time, a few questions ahead of the answers.

    `endpoints`: it is told in every message whether it is to answer or to forget, and may answer with the actions
    alone, as RoboArena's does.
    """

    context = 1

    def __init__(
        self, link: Link, action_size: int, chunk: int | None, keys: Keys, entry: str, endpoints: bool = False
    ) -> None:
        self.link, self.action_size, self.keys, self.entry = link, action_size, keys, entry
        self._chunk, self.chunk, self.endpoints = chunk, chunk or 1, endpoints

    def again(self) -> "Theirs":
        return Theirs(_like(self.link), self.action_size, self._chunk, self.keys, self.entry, self.endpoints)

    def connect(self) -> None:
        self.link.connect()

    def fingerprint(self) -> None:
        """Such a server says nothing of its parameters."""

    def ask(self, window: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        """(K, To, Do), (K,) -> (K, Ta, Da) and K. Raises Lost."""
        endpoint = {"endpoint": "infer"} if self.endpoints else {}
        observations = [_plain(entries_of(window[k, -1], self.keys)) | endpoint for k in range(len(window))]
        answers = self.link.ask(observations)
        if self.endpoints:
            answers = [{self.entry: x} if isinstance(x, np.ndarray) else x for x in answers]
        size = self._chunk, self.action_size
        return torch.stack([_actions(answer, self.entry, (), *size) for answer in answers]), len(rows)

    def reset(self, rows: Tensor) -> None:
        del rows  # a connection of such a server has one episode
        self.link.ask([{"endpoint": "reset"}])


def _like(link: Link) -> Link:
    other = Link(link.address, patience=link.patience, api_key=link._api_key)
    other.connections = link.connections  # it has been there: it may be waited for
    return other


def _actions(answer: Any, entry: str, rows: tuple[int, ...], chunk: int | None, action_size: int) -> Tensor:
    if not isinstance(answer, dict) or entry not in answer:
        known = ", ".join(sorted(map(str, answer))) if isinstance(answer, dict) else type(answer).__name__
        raise UserError(f"The policy server's answer has no {entry!r} (actions=ENTRY names another); it has: {known}.")
    try:
        return shaped(np.asarray(answer[entry], dtype=np.float32), rows, chunk, action_size)
    except WrongShape as error:
        raise UserError(f"The policy server {error}") from None


def _arrays(window: Tensor) -> Any:
    if isinstance(window, Tensor):
        return window.cpu().numpy()
    parts: Any = window
    return {name: x.cpu().numpy() for name, x in parts.items()}


def _plain(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: x.cpu().numpy() if isinstance(x, Tensor) else x for name, x in entries.items()}
