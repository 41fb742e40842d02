"""Messages as openpi's client and server exchange them: msgpack in which arrays are maps.

{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [...]}; scalars of numpy likewise, `__npgeneric__`.

    connect   the server sends its metadata, a map
    infer     the client sends an observation, a map; the answer has "actions" (T, Da) and "server_timing"
    error     the server sends the traceback as text and closes
    GET /healthz answers OK

openpi's server has no memory and knows no more. Servers like RoboArena's want an "endpoint" in every message, "infer"
or "reset", and may answer the first with the array alone.
A server of this package says in its metadata, under `OURS`, which policy it serves, and that it takes whole batches:

    {"endpoint": "infer", "windows": (K, To, Do) or a map of such, "rows": (K,)} -> {"actions": (K, Ta, Da), "queries"}
    {"endpoint": "reset", "rows": (K,)} -> {"status": "reset successful"}
"""

from typing import Any

import numpy as np

from policy_decorator.errors import MissingExtra, UserError

OURS = "policy_decorator"
RESET_DONE = "reset successful"
PLAIN = "biuf"  # kinds of numbers; anything else in an array would be an object


def pack(message: Any) -> bytes:
    """Maps, lists, texts, numbers and arrays -> bytes. Raises UserError for what cannot be said."""
    try:
        return _msgpack().packb(message, default=_packed)
    except (TypeError, ValueError) as error:
        raise UserError(f"This cannot be sent to a policy server: {error}.") from None


def unpack(data: bytes) -> Any:
    """The inverse. Arrays are copies that may be written to. Raises UserError for what is no such message."""
    try:
        return _msgpack().unpackb(data, object_hook=_unpacked)
    except (ValueError, TypeError, KeyError, _msgpack().UnpackException) as error:
        raise UserError(
            f"A message that is none of a policy server's came in ({error}): is that its address?"
        ) from None


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in PLAIN:
            raise TypeError(f"an array of {value.dtype}")
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"a {type(value).__name__}")


def _unpacked(value: dict[Any, Any]) -> Any:
    kind = b"__ndarray__" if b"__ndarray__" in value else b"__npgeneric__" if b"__npgeneric__" in value else None
    if kind is None:
        return value
    dtype = np.dtype(value[b"dtype"])
    if dtype.kind not in PLAIN:
        raise ValueError(f"an array of {dtype}")
    if kind == b"__npgeneric__":
        return dtype.type(value[b"data"])
    return np.frombuffer(value[b"data"], dtype=dtype).reshape(value[b"shape"]).copy()


def _msgpack() -> Any:
    try:
        import msgpack  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("msgpack, which policy servers speak,", "serve") from None
    return msgpack
