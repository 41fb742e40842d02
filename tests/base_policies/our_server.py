"""This package's server in a process of its own, with a policy that remembers: python our_server.py PORT SIZE HASH."""

import sys

import torch
from torch import Tensor

from policy_decorator.memory import RowMemory
from policy_decorator.serving.server import Server


class Leaky:
    """A `StatefulPolicy`: leaky sums of what it saw, and the difference of its two frames."""

    context, chunk = 2, 1

    def __init__(self) -> None:
        self.memory, self.queries = RowMemory(), 0

    def session(self) -> "Leaky":
        return Leaky()

    def reset(self, rows: Tensor) -> None:
        self.memory.reset(rows)

    def act(self, window: Tensor, rows: Tensor) -> Tensor:
        self.queries += len(rows)
        seen = 0.5 * self.memory.read("seen", rows, torch.zeros(2)) + window[:, -1, :2]
        self.memory.write("seen", rows, seen)
        return torch.tanh(seen + window[:, -1, 2:4] - window[:, 0, 2:4])[:, None]


if __name__ == "__main__":
    port, obs_size, parameters = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    Server(Leaky(), obs_size=obs_size, action_size=2, parameters=parameters).run(
        "127.0.0.1", port, lambda port: print("ready", port, flush=True)
    )
