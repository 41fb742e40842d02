"""A policy server of openpi's kind, written from its wire format alone: nothing of this package is in it.

python openpi_server.py PORT KIND        says "ready PORT" when it listens
"""

import functools
import http
import os
import sys
import time
import traceback
from typing import Any

import msgpack
import numpy as np
from websockets.sync.server import ServerConnection, serve

SIZE, CHUNK = 2, 4


def to_wire(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return value


def from_wire(value: Any) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
    return np.dtype(value[b"dtype"]).type(value[b"data"]) if b"__npgeneric__" in value else value


packb: Any = functools.partial(msgpack.packb, default=to_wire)
unpackb: Any = functools.partial(msgpack.unpackb, object_hook=from_wire)


class Policy:
    """Steers by the state; what else it does depends on the kind."""

    def __init__(self, kind: str) -> None:
        self.kind, self.seen = kind, np.zeros(SIZE, dtype=np.float32)

    def reset(self) -> None:
        self.seen[:] = 0

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        state = np.asarray(obs["observation/state"], dtype=np.float32)
        assert set(obs) == {"observation/state", "prompt"}
        assert obs["prompt"] == "reach"
        assert state.ndim == 1
        action = 2 * (state[2:4] - state[:2]) + np.array([0.14, 0.06], dtype=np.float32)  # past the goal
        if self.kind in ("memory", "bare"):
            self.seen = 0.5 * self.seen + state[:2]
            return {"actions": np.tanh(self.seen)[None]}
        if self.kind == "dies":
            os._exit(3)
        if self.kind == "fails":
            raise RuntimeError("no such camera")
        if self.kind == "nan":
            action[0] = np.nan
        if self.kind == "size":
            action = np.zeros(3, dtype=np.float32)
        actions = np.stack([action * (1 - 0.1 * t) for t in range(CHUNK)])
        return {"control" if self.kind == "entry" else "actions": actions}


def handle(socket: ServerConnection, kind: str) -> None:
    policy = Policy(kind)
    socket.send(packb({"server": "of a test"}))
    for message in socket:
        try:
            obs, began = unpackb(message), time.monotonic()
            endpoint = obs.pop("endpoint") if kind in ("memory", "bare") else "infer"  # without it they fail
            if endpoint == "reset":
                policy.reset()
                socket.send("reset successful")
                continue
            answer = policy.infer(obs)
            if kind == "bare":
                socket.send(packb(answer["actions"]))
                continue
            socket.send(packb({**answer, "server_timing": {"infer_ms": 1000 * (time.monotonic() - began)}}))
        except Exception:
            socket.send(traceback.format_exc())
            socket.close(1011)


def health(connection: ServerConnection, request: Any) -> Any:
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None


if __name__ == "__main__":
    port, kind = int(sys.argv[1]), sys.argv[2]
    how: Any = {"compression": None, "max_size": None, "process_request": health}
    with serve(functools.partial(handle, kind=kind), "127.0.0.1", port, **how) as server:
        print("ready", server.socket.getsockname()[1], flush=True)
        server.serve_forever()
