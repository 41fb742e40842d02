"""This package's server in a process of its own: python our_server.py PORT, with a policy that remembers."""

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
    Server(Leaky(), obs_size=int(sys.argv[2]), action_size=2).run(
        "127.0.0.1", int(sys.argv[1]), lambda port: print("ready", port, flush=True)
    )
