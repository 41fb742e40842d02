"""A policy server: any policy of this package over a socket, for openpi's client and for ours.

Every connection has a session of the policy, with a memory of its own.
"""

import asyncio
import contextlib
import http
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_decorator.errors import MissingExtra, UserError
from policy_decorator.memory import AnyPolicy, session
from policy_decorator.serving.observations import Observations, Shapes
from policy_decorator.serving.wire import OURS, RESET_DONE, pack, unpack

INTERNAL_ERROR = 1011  # RFC 6455


class Conversation:
    """What is known in one connection: the session, and an openpi client's frames that the policy looks back on."""

    def __init__(self, policy: AnyPolicy, observations: Observations) -> None:
        self.asked, self.observations = session(policy), observations
        self.frames: list[Tensor] = []

    def answer(self, message: Any) -> dict[str, Any]:
        """Raises UserError for a message that cannot be understood."""
        if not isinstance(message, dict):
            raise UserError("A message must be a map.")
        endpoint = message.get("endpoint", "infer")
        if endpoint == "reset":
            self._reset(message.get("rows"))
            return {"status": RESET_DONE}
        if endpoint != "infer":
            raise UserError(f"There is no endpoint {endpoint!r}: infer or reset.")
        if "windows" in message:
            rows = torch.from_numpy(np.asarray(message["rows"], dtype=np.int64))
            return self._infer(self.observations.windows(message["windows"]), rows)
        self.frames = [*self.frames, self.observations.frame(message)][-self.asked.context :]
        missing = self.asked.context - len(self.frames)
        window = torch.stack([self.frames[0]] * missing + self.frames)
        answer = self._infer(window[None], torch.zeros(1, dtype=torch.int64))
        return answer | {"actions": answer["actions"][0]}

    def _infer(self, windows: Tensor, rows: Tensor) -> dict[str, Any]:
        began = time.perf_counter()
        with torch.no_grad():
            actions = self.asked.act(windows, rows)  # (K, Ta, Da)
        timing = {"infer_ms": 1000 * (time.perf_counter() - began)}
        numbers = actions.to("cpu", torch.float32).numpy()
        return {"actions": numbers, "queries": self.asked.queries, "server_timing": timing}

    def _reset(self, rows: Any) -> None:
        self.frames = []
        self.asked.reset(torch.zeros(1, dtype=torch.int64) if rows is None else torch.from_numpy(np.asarray(rows)))


class Server:
    """Answers any number of connections, one question at a time, until it is told to `stop`.

    `parameters` is a hash of those of the policy, by which clients notice that another one is served; a function is
    asked for it anew whenever a client connects. `shapes` (C, H, W) are those of the pictures that the policy looks at,
    `entry` is what holds the numbers of an openpi client's observation (see `Observations`).
    """

    def __init__(
        self,
        policy: AnyPolicy,
        *,
        obs_size: int,
        action_size: int,
        metadata: Mapping[str, Any] | None = None,
        shapes: Shapes | None = None,
        entry: str | None = None,
        device: torch.device | None = None,
        parameters: str | Callable[[], str | None] | None = None,
    ) -> None:
        self.policy, self.answers, self.connections = policy, 0, 0
        seen = Observations(obs_size, shapes or {}, entry, device or torch.device("cpu"))
        self._talk = lambda: Conversation(policy, seen)
        sizes = {"context": policy.context, "chunk": int(getattr(policy, "chunk", 1))}
        sizes |= {"obs_size": obs_size, "action_size": action_size, "memory": hasattr(policy, "session")}
        sizes |= {"shapes": {name: list(shape) for name, shape in (shapes or {}).items()}}
        self._about, self._said, self._parameters = dict(metadata or {}), {"version": 1, **sizes}, parameters

    def run(self, host: str, port: int, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serve until Ctrl-C, SIGTERM or `stop`; `ready` is told the port (0 takes a free one).

        Raises:
            UserError: the port is taken.
        """
        asyncio.run(self._run(host, port, ready))

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._loop.call_soon_threadsafe(self._stop.set)

    def greeting(self) -> dict[str, Any]:
        """What a client is told first: what is served."""
        parameters = self._parameters() if callable(self._parameters) else self._parameters
        return {**self._about, OURS: {**self._said, "parameters": parameters}}

    async def _run(self, host: str, port: int, ready: Callable[[int], None]) -> None:
        serve = _websockets()
        self._loop, self._thinking, self._stop = asyncio.get_running_loop(), asyncio.Lock(), asyncio.Event()
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            for name in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(name, self._stop.set)
        try:
            # No pings: an openpi client that simulates for a minute answers none.
            how: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None}
            server = await serve(self._handle, host, port, process_request=_health, **how)
        except OSError as error:
            raise UserError(
                f"Cannot serve at {host}:{port} ({error.strerror or error}): choose another --port."
            ) from None
        async with server:
            ready(next(iter(server.sockets)).getsockname()[1])
            await self._stop.wait()

    async def _handle(self, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed  # pyright: ignore[reportMissingImports]

        self.connections += 1
        talk = self._talk()
        try:
            async with self._thinking:  # one question at a time, away from the loop, which goes on to listen
                greeting = await asyncio.to_thread(self.greeting)
            await socket.send(pack(greeting))
            async for message in socket:
                async with self._thinking:
                    answer = await asyncio.to_thread(lambda message=message: talk.answer(unpack(message)))
                self.answers += "actions" in answer
                await socket.send(pack(answer))
        except ConnectionClosed:
            return
        except Exception as error:  # whatever the policy raises is the client's to know, and the others go on
            said = f"{type(error).__name__}: {error}" if isinstance(error, UserError) else traceback.format_exc()
            await socket.send(said)
            await socket.close(code=INTERNAL_ERROR, reason="The error was sent as text.")


def _health(connection: Any, request: Any) -> Any:
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None


def _websockets() -> Any:
    try:
        from websockets.asyncio.server import serve  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("websockets, which serves policies,", "serve") from None
    return serve
