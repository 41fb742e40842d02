"""Policies over a socket: WebSocket and msgpack, as openpi's policy server and client speak."""
