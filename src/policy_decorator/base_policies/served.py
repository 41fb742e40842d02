"""A policy that another process serves, of this package or of openpi's kind, as a base policy.

`ws://host:port?observation/state=:&prompt=open the door&chunk=8`: what is not an option is an entry of the observation
(see `entries`). A server of this package needs neither: it says itself what it takes.

The server may be restarted while it is used, with the same policy. A question that it did not answer is asked again;
where it has a memory, that is made anew first, from the observations of the episodes that are going on, in a connection
that has none.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import torch
from torch import Tensor

from policy_decorator.base_policies.answers import checked
from policy_decorator.base_policies.dialects import Ours, Theirs
from policy_decorator.base_policies.entries import Keys, part_of_text
from policy_decorator.errors import UserError
from policy_decorator.serving.link import Link, Lost
from policy_decorator.serving.wire import OURS

ATTEMPTS = 3  # at one question: what kills its server every time is not asked for ever
OPTIONS = ("chunk", "actions", "reset", "patience", "api_key")
T = TypeVar("T")


def served(
    address: str,
    action_size: int,
    *,
    keys: Keys | None = None,
    chunk: int | None = None,
    actions: str = "actions",
    reset: bool = False,
    patience: float = 60.0,
    api_key: str | None = None,
) -> "ServedPolicy | ServedMemory":
    """The policy at `address` (ws:// or wss://), which must be there now.

    Args:
        keys: what a server of openpi's kind observes; of an address with a query, the rest of that.
        chunk: how many of the T actions of an answer are executed; None: one, or as many as a server of this package
            says.
        actions: the entry of an answer that holds them.
        reset: a server of another kind has a memory, and takes an "endpoint" in every message, infer or reset. Every
            row then has a connection, and an answer may be a bare array.
        patience: seconds to wait for a server that is restarted, and for an answer.

    Raises:
        UserError: nobody there, a policy of another task, a chunk of nothing, or no word on what it observes.
    """
    if chunk is not None and chunk < 1:
        raise UserError(f"chunk must be at least 1, got {chunk}: it is how many of an answer's actions are executed.")
    link = Link(address, patience=patience, api_key=api_key)
    link.connect()
    if (said := link.metadata.get(OURS)) is not None:
        if said["action_size"] != action_size:
            raise UserError(f"The policy at {address} answers with {said['action_size']} actions, not {action_size}.")
        dialect = Ours(link, said)
        return _with_memory(dialect) if said["memory"] else ServedPolicy(dialect)
    if keys is None:
        raise UserError(
            f"{address} is no server of this package: say what its policy observes, as {address}"
            "?observation/state=:&prompt=TEXT, or with keys={...}."
        )
    theirs = Theirs(link, action_size, chunk, keys, actions, reset)
    return _with_memory(theirs) if reset else ServedPolicy(theirs)


def _with_memory(dialect: "Ours | Theirs") -> "ServedMemory":
    dialect.link.close()  # sessions have connections of their own, and a server may have room for few
    return ServedMemory(dialect)


def from_address(address: str, action_size: int) -> "ServedPolicy | ServedMemory":
    """`served`, with everything that the query of the address says. Raises UserError for options that are none."""
    place, _, query = address.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    options: dict[str, Any] = {name: given.pop(name) for name in OPTIONS if name in given}
    try:
        options |= {
            name: kind(options[name]) for name, kind in (("chunk", int), ("patience", float)) if name in options
        }
        port = urlsplit(place).port
    except ValueError as error:
        raise UserError(f"{address} cannot be understood: {error}.") from None
    if port is None:
        raise UserError(f"{address} has no port: give ws://HOST:PORT.")
    options["reset"] = options.get("reset", "0") not in ("0", "no", "false", "")
    keys = {name: part_of_text(text) for name, text in given.items()}
    return served(place, action_size, keys=keys or None, **options)


def is_address(text: str) -> bool:
    """Whether it names a policy server."""
    return text.startswith(("ws://", "wss://"))


class ServedPolicy:
    """A served policy without a memory: rows may be asked about in any number and order.

    Its `fingerprint()` is the hash of its parameters, which the server is asked for anew.
    """

    def __init__(self, dialect: Ours | Theirs) -> None:
        self.dialect, self.action_size = dialect, dialect.action_size
        self.context, self.chunk = dialect.context, dialect.chunk
        self.fingerprint = dialect.fingerprint

    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da) in [-1, 1]. Raises UserError: wrong answers, or a server that stays away."""
        rows = torch.arange(len(window))
        actions, _ = _persistently(lambda: self.dialect.ask(window, rows), self.dialect.connect, self.dialect.link)
        return checked(actions.to(window.device))


class ServedMemory:
    """A served policy with a memory: what a row has been asked since its reset is kept, to make the memory anew."""

    def __init__(self, dialect: Ours | Theirs) -> None:
        self.dialect, self.action_size, self.queries = dialect, dialect.action_size, 0
        self.context, self.chunk = dialect.context, dialect.chunk
        self.fingerprint = dialect.fingerprint
        self._talks: dict[int, Ours | Theirs] = {}  # by row; ours all talk in one connection
        self._asked: dict[int, list[Tensor]] = {}  # by row, its windows (To, Do) since the reset

    def session(self) -> "ServedMemory":
        """The same policy with an empty memory of its own: other connections."""
        return ServedMemory(self.dialect)

    def reset(self, rows: Tensor) -> None:
        """Episodes begin in `rows` (K,)."""
        for talk, own in self._by_talk(rows):
            _persistently(lambda talk=talk, own=own: talk.reset(own), lambda talk=talk: self._anew(talk), talk.link)
        for row in rows.tolist():
            self._asked[row] = []

    def act(self, window: Tensor, rows: Tensor) -> Tensor:
        """(K, To, Do), (K,) -> (K, Ta, Da) in [-1, 1]. Raises UserError as `ServedPolicy`."""
        actions: dict[int, Tensor] = {}
        place = {row: k for k, row in enumerate(rows.tolist())}
        for talk, own in self._by_talk(rows):
            part = window[[place[row] for row in own.tolist()]]
            answer, asked = _persistently(
                lambda talk=talk, part=part, own=own: talk.ask(part, own), lambda talk=talk: self._anew(talk), talk.link
            )
            self.queries += asked
            actions |= dict(zip(own.tolist(), answer, strict=True))
        for row, one in zip(rows.tolist(), window, strict=True):
            self._asked.setdefault(row, []).append(one.clone())
        return checked(torch.stack([actions[row] for row in rows.tolist()]).to(window.device))

    def state(self) -> dict[str, Any]:
        """What the episodes that are going on have been asked."""
        return {str(row): torch.stack(asked) for row, asked in self._asked.items() if asked}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._asked = {int(row): list(windows) for row, windows in state.items()}
        self._talks.clear()
        for talk, _ in self._by_talk(torch.tensor(sorted(self._asked), dtype=torch.int64)):
            self._anew(talk)

    def _by_talk(self, rows: Tensor) -> list[tuple[Ours | Theirs, Tensor]]:
        if isinstance(self.dialect, Ours):
            talk = self._talks.setdefault(0, self._talks.get(0) or self.dialect.again())
            return [(talk, rows)] if len(rows) else []
        for row in rows.tolist():
            if row not in self._talks:
                self._talks[row] = self.dialect.again()
        return [(self._talks[row], torch.tensor([row])) for row in rows.tolist()]

    def _anew(self, talk: Ours | Theirs) -> None:
        """A new connection that remembers what the old one did: its episodes so far, asked once more."""
        talk.connect()
        rows = sorted(row for row in self._asked if isinstance(talk, Ours) or self._talks.get(row) is talk)
        if rows:
            talk.reset(torch.tensor(rows))
        for t in range(max((len(self._asked[row]) for row in rows), default=0)):
            going = [row for row in rows if t < len(self._asked[row])]
            windows = torch.stack([self._asked[row][t] for row in going])
            self.queries += talk.ask(windows, torch.tensor(going))[1]


def _persistently(question: Callable[[], T], connect: Callable[[], object], link: Link) -> T:
    """The answer, by way of a new connection where the old one breaks. Raises UserError."""
    for _ in range(ATTEMPTS):
        try:
            return question()
        except Lost:
            pass
        for _ in range(ATTEMPTS):
            try:
                connect()
                break
            except Lost:
                continue
    raise UserError(
        f"The policy server at {link.address} went away {ATTEMPTS} times at the same question: look at its output."
    )
