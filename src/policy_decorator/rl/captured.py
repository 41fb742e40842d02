"""A learner's update as a CUDA graph: one call launches all of its kernels, some two hundred.

A graph is recorded once and replayed from then on (PyTorch's notes on CUDA semantics, "CUDA graphs"). A replay runs the
same kernels on the same memory. So every batch is copied to the same place; updates with and without the actor's step
are two graphs; and what Python decides or draws during an update is decided and drawn when it is recorded. Random
numbers of the CUDA generator go on from replay to replay as they would without graphs.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from policy_decorator.rl.compiled import Metrics, Step, Updated, plain
from policy_decorator.types import Transition

WARM_UP = 3
"""Updates of each kind before it is recorded: libraries and optimisers allocate what they keep. They are real ones."""

Work = Callable[[], Metrics]


class Recorder(Protocol):
    """What can run work as it will be recorded, and record it."""

    def run(self, work: Work) -> Metrics: ...
    def record(self, work: Work) -> tuple[Callable[[], None], Metrics]: ...  # without effect: a replay, what it fills


class CudaRecorder:
    """Records CUDA graphs, each with its own memory, on the stream on which the work ran before."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def run(self, work: Work) -> Metrics:
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            metrics = work()
        outside.wait_stream(self.stream)
        return metrics

    def record(self, work: Work) -> tuple[Callable[[], None], Metrics]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.stream):
            metrics = work()
        return graph.replay, metrics


class Captured:
    """Calls of it are calls of `learner.update`, replayed after `WARM_UP` calls of each kind."""

    def __init__(self, learner: Updated, step: Step, recorder: Recorder | None = None) -> None:
        """`step` is the learner's, or the same compiled."""
        self.learner, self.step = learner, step
        self.optimizers = [part for part in vars(learner).values() if isinstance(part, Optimizer)]
        self.recorder = recorder or CudaRecorder(next(learner.actor.parameters()).device)
        self._forget()

    def _forget(self) -> None:
        self.warmed = {False: 0, True: 0}  # by whether the actor takes a step
        self.recorded: dict[bool, tuple[Callable[[], None], Metrics]] = {}
        self.batch: Transition | None = None
        self.moments = self._moments()

    def _moments(self) -> list[object]:
        return [opt.state for opt in self.optimizers]

    def __call__(self, b: Transition) -> Metrics:
        """One update; the metrics are the caller's to keep. Raises ValueError for a batch of another shape."""
        if any(now is not then for now, then in zip(self._moments(), self.moments, strict=True)):
            self._forget()  # a snapshot was restored: graphs would go on with the optimisers' old moments
        batch = self._place(b)
        with_actor = self.learner.begun()
        if self.warmed[with_actor] < WARM_UP:
            self.warmed[with_actor] += 1
            return self.recorder.run(lambda: self.step(batch, with_actor))
        if with_actor not in self.recorded:
            self.recorded[with_actor] = self.recorder.record(lambda: self.step(batch, with_actor))
        replay, metrics = self.recorded[with_actor]
        replay()
        return {name: value.clone() for name, value in metrics.items()}

    def _place(self, b: Transition) -> Transition:
        """The batch, where the graphs look for it."""
        b = plain(b)
        if self.batch is None:
            self.batch = type(b)(*(_cloned(x) for x in b))
            return self.batch
        for place, x in zip(_tensors(self.batch), _tensors(b), strict=True):
            if place.shape != x.shape:
                raise ValueError(f"updates were recorded for batches of {tuple(place.shape)}, not {tuple(x.shape)}")
            place.copy_(x)
        return self.batch


def _cloned(x: Any) -> Any:
    return {name: y.clone() for name, y in x.items()} if isinstance(x, dict) else x.clone()


def _tensors(b: Transition) -> list[Tensor]:
    """All of a batch; pictures and what is beside them in the order of their names."""
    parts: list[Any] = list(b)
    return [y for x in parts for y in ([x[name] for name in sorted(x)] if isinstance(x, dict) else [x])]
