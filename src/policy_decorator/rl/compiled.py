"""A learner's update as one compiled graph: losses, gradients, Adam and targets in a few dozen kernels.

An update without a compiler is some two hundred operations, most of them small, each reading and writing memory of its
own. `torch.compile` is given all of it at once (gradients too: `trace_autograd_ops`) and fuses what lies between the
matrix products. Noise is drawn by the generator that draws it without a compiler, so a seed means the same; sums are
rounded in another order. A graph is made for updates with the actor's step and one for those without, at their first
call: twenty seconds on a CPU, three where PyTorch's cache on disk has it from an earlier run.
"""

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from policy_decorator.types import Transition

Metrics = dict[str, Tensor]
Step = Callable[[Transition, bool], Metrics]
"""A batch, and whether the actor takes a step too."""

WORTH_IT = 10_000
"""Updates from which on compilation saves more time than it takes."""
WORTH_IT_TUNED = 2_000
"""The same where the base itself learns."""


def can_compile() -> bool:
    """Whether this version of torch takes gradients into its graphs."""
    from torch._dynamo import config  # which takes a second and a half to import

    return hasattr(config, "trace_autograd_ops")


OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}
ON_A_GPU = OPTIONS | {"loop_ordering_after_fusion": False}
"""PyTorch 2.11 looks for other orders of loops and fails there on our updates (`reorder_loops_by_dep_pair`)."""

MOST_GRAPHS = 256
"""Graphs that one process may make of one kind of learner: two for each, and two more for another number of threads."""


def plain(b: Transition) -> Transition:
    """The batch with dicts for TensorDicts: what has pictures, as compilers and graphs take it."""
    columns: Any = (x if isinstance(x, Tensor) else dict(x.items()) for x in b)
    return type(b)(*columns)


class Updated(Protocol):
    """What learns: its optimisers are attributes of it, and Python decides in `begun` what an update is to be."""

    @property
    def actor(self) -> nn.Module: ...
    def begun(self) -> bool: ...
    def step(self, b: Transition, with_actor: bool) -> Metrics: ...


class Compiled:
    """Calls of it are calls of `learner.update`. Where compilation fails it warns and goes on without."""

    def __init__(self, learner: Updated) -> None:
        self.learner = learner
        options = ON_A_GPU if next(learner.actor.parameters()).is_cuda else OPTIONS
        self.graphs = torch.compile(learner.step, fullgraph=True, dynamic=False, options=options)
        self.works: dict[bool, bool] = {}  # by whether the actor takes a step, once tried

    def __call__(self, b: Transition) -> Metrics:
        return self.step(b, self.learner.begun())

    def step(self, b: Transition, with_actor: bool) -> Metrics:
        """As the learner's own."""
        from torch._dynamo import config

        b = plain(b)
        if not self.works.get(with_actor, True):
            return self.learner.step(b, with_actor)
        with config.patch(trace_autograd_ops=True, recompile_limit=MOST_GRAPHS):  # also where it is compiled anew
            return self.graphs(b, with_actor) if with_actor in self.works else self._try(b, with_actor)

    def _try(self, b: Transition, with_actor: bool) -> Metrics:
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        self.works[with_actor] = True
        try:
            return self.graphs(b, with_actor)
        except (TorchDynamoException, InductorError) as error:  # before anything was computed
            self.works[with_actor] = False
            reason = str(error).strip().split("\n")[0]
            warnings.warn(f"torch.compile failed, so learning takes longer: {reason}", stacklevel=2)
            return self.learner.step(b, with_actor)
