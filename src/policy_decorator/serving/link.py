"""The client's end of a connection to a policy server, which may be restarted while it is used."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from policy_decorator.errors import MissingExtra, UserError
from policy_decorator.serving.wire import RESET_DONE, pack, unpack

IN_FLIGHT = 8  # questions sent ahead of their answers: more could fill the buffers of both ends, which then wait
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between tries to connect; each is twice the one before
AT_FIRST = 5.0  # seconds in which a server must be there when nobody has seen it yet

log = logging.getLogger(__name__)


class Lost(Exception):
    """The connection broke before all answers had come; some of the questions may have been heard."""


class Link:
    """One connection, made when it is first needed. `metadata` is what the server said of itself.

    Args:
        address: ws://host:port or wss://...
        patience: seconds to wait for a server that went away, and for an answer.
        api_key: sent as openpi's client does, if any.
    """

    def __init__(self, address: str, *, patience: float = 60.0, api_key: str | None = None) -> None:
        self.address, self.patience, self._api_key = address, patience, api_key
        self._socket: Any = None
        self.metadata: dict[str, Any] = {}
        self.connections = 0

    def connect(self) -> None:
        """A new connection, in which the server remembers nothing. Raises UserError when it stays away."""
        self.close()
        limit = self.patience if self.connections else min(AT_FIRST, self.patience)
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                self._socket = self._open()
                self.metadata = unpack(self._socket.recv(timeout=self.patience))
                break
            except _broken() as error:
                self.close()
                if time.monotonic() - began + pause > limit:
                    raise UserError(self._stayed_away(error, limit)) from None
                if pause == FIRST_PAUSE and self.connections:
                    log.warning("Lost the policy server at %s; waiting up to %.0f s for it.", self.address, limit)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        if not isinstance(self.metadata, dict):
            raise UserError(f"What answers at {self.address} is no policy server: it did not say what it is.")
        self.connections += 1

    def ask(self, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Questions -> answers, in their order. Raises Lost; UserError for a server that reports an error."""
        packed, answers, sent = [pack(message) for message in messages], [], 0
        if self._socket is None:
            raise Lost
        try:
            while len(answers) < len(packed):
                while sent < min(len(packed), len(answers) + IN_FLIGHT):
                    self._socket.send(packed[sent])
                    sent += 1
                answers.append(self._read(self._socket.recv(timeout=self.patience)))
        except TimeoutError:
            self.close()
            raise UserError(
                f"The policy server at {self.address} did not answer within {self.patience:.0f} s: look at it, or be "
                "more patient (patience=SECONDS in its address)."
            ) from None
        except _broken() as error:
            self.close()
            raise Lost from error
        return answers

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(Exception):  # whatever it says, it is not needed any more
                self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        self.close()  # sessions of a policy come and go, and a server may not have room for all of them

    def _read(self, answer: str | bytes) -> Any:
        if isinstance(answer, bytes):
            return unpack(answer)
        if answer.strip() == RESET_DONE:
            return {"status": answer}
        self.close()
        lines = answer.strip().splitlines() or ["(no text)"]
        raise UserError(
            f"The policy server at {self.address} failed: {lines[-1]}\nIts own words:\n{answer.strip()}\n"
            "Look at what it expects of an observation, and at what it was sent."
        )

    def _open(self) -> Any:
        from websockets.sync.client import connect  # pyright: ignore[reportMissingImports]

        headers = {"Authorization": f"Api-Key {self._api_key}"} if self._api_key else None
        # No pings: a server that thinks for a minute, as while it compiles, answers none.
        how: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None, "close_timeout": 1}
        how |= {"open_timeout": self.patience, "proxy": None, "additional_headers": headers}
        return connect(self.address, **how).__enter__()  # newer versions connect on entering; it is left in `close`

    def _stayed_away(self, error: Exception, seconds: float) -> str:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        came_before = "It was there before: start it again, and go on with --resume." if self.connections else ""
        return (
            f"No policy server answers at {self.address} ({reason}; {seconds:.0f} s). "
            f"{came_before or 'Start it (pidec serve POLICY, or the one of your policy) and check host and port.'}"
        )


def _broken() -> tuple[type[Exception], ...]:
    """What a connection raises that cannot be made, or that breaks."""
    try:
        from websockets.exceptions import WebSocketException  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("websockets, which connects to policy servers,", "serve") from None
    return (OSError, EOFError, WebSocketException)
