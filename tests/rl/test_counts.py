"""Counts that decide how fast learning is on any machine: kernels, matrix products, stalls and questions to the base.

No times: these counts are the same on a busy machine. A GPU is pretended (`Pretended`), so that what would make the
processor wait for one is counted without one.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from policy_decorator.decorator import ProgressiveExploration, Residual
from policy_decorator.envs.toy import TASKS, BiasedController, Reach
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.methods import METHODS, Problem
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.rl.exploration import uniform_like
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.replay import NStep, Replay
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.rollout import Collector
from policy_decorator.train import TrainConfig, train
from policy_decorator.types import Step, Transition

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2"}
"""Operations whose outcome the processor must wait for."""
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""The same, if an index is a mask."""


def reads(func: Any, args: Any) -> bool:
    name = func.overloadpacket.__name__
    masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name in MASKED else []
    return name in READS or bool(masks)


# ---- one update -----------------------------------------------------------------------------------------------


class Counted(TorchDispatchMode):
    """Operations by name, without those that only look at memory otherwise or mark a place for a profiler."""

    def __init__(self) -> None:
        super().__init__()
        self.launched, self.reads = Counter[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.namespace == "aten":
            self.launched[func.overloadpacket.__name__] += 1
        self.reads += reads(func, args)
        return func(*args, **(kwargs or {}))


OBS, ACTION = 39, 4


def _paper(actor_every: int, depth: int = NetConfig().depth) -> tuple[SAC, Transition]:
    """A learner and a batch of the paper's sizes, after the updates in which the optimisers begin."""
    nets, cfg = NetConfig(depth=depth), SACConfig(actor_every=actor_every)
    actor, critics = TanhGaussian(OBS, (1, ACTION), nets), Critics(OBS, ACTION, nets)
    learner, n = SAC(actor, critics, Residual(0.1), ACTION, cfg), cfg.batch_size
    action, flat = (n, 1, ACTION), torch.zeros(n)
    b = Transition(
        torch.randn(n, OBS), torch.randn(action), torch.randn(action), flat, flat, flat + 1, torch.randn(n, OBS),
        torch.randn(action),
    )  # fmt: skip
    for _ in range(actor_every):
        learner.update(b)
    return learner, b


def _update(kind: str, depth: int = NetConfig().depth) -> Counted:
    """One update of the critic alone, or one with the actor's step."""
    learner, b = _paper({"critic": 3, "both": 1}[kind], depth)
    with Counted() as counted:
        learner.update(b)
    return counted


@pytest.mark.parametrize(("kind", "most"), [("critic", 112), ("both", 246)])
def test_an_update_launches_no_more_than_it_did_and_never_waits(kind: str, most: int) -> None:
    counted = _update(kind)
    assert 0.9 * most < sum(counted.launched.values()) <= most, counted.launched.most_common()
    assert counted.reads == 0
    assert counted.launched["lift_fresh"] == 0  # a tensor made of Python numbers is copied to the device


@pytest.mark.parametrize("depth", [1, 3])
def test_matrices_are_multiplied_as_often_as_the_gradients_need(depth: int) -> None:
    """n layers: n products forward, 2 n - 1 backward (the first layer's input needs no gradient).

    The actor's gradient passes through the critic in n products more; its weights' gradients would be another n.
    """
    n = depth + 1
    critic, both = (_update(kind, depth).launched for kind in ("critic", "both"))
    assert (critic["baddbmm"], critic["bmm"]) == (3 * n, 2 * n - 1)  # actor, target and critic forward
    assert (both["baddbmm"], both["bmm"]) == (5 * n, 2 * (2 * n - 1) + n)
    assert not {"mm", "addmm", "matmul", "linear"} & {*critic, *both}


# ---- one decision ---------------------------------------------------------------------------------------------


class There(torch.Tensor):
    """A tensor that seems to be on a device of its own; its numbers are those of `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "There":
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device="meta", **layout)  # pyright: ignore
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the pretended device")


class Pretended(TorchDispatchMode):
    """ "meta" as a GPU that computes on the CPU, and counts how often the processor has to wait for it.

    As on a GPU, tensors on two devices do not mix, and a copy to it that is not `non_blocking` waits too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stalls = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_it = any(isinstance(x, There) for x in tensors)
        stays = on_it
        if kwargs.get("device") is not None:
            stays = torch.device(kwargs["device"]).type == "meta"
            kwargs["device"] = torch.device("cpu")
        if on_it and any(not isinstance(x, There) and x.dim() for x in tensors):
            raise AssertionError(f"{name} of tensors on two devices")
        leaves_it, comes_to_it = on_it and not stays, tensors and not on_it and stays
        if (on_it and reads(func, args)) or leaves_it or (comes_to_it and not kwargs.get("non_blocking")):
            self.stalls[name] += 1
        args, kwargs = tree_map_only(There, lambda x: x.inner, (args, kwargs))
        out = func(*args, **kwargs)
        return tree_map_only(Tensor, There, out) if stays else out


@pytest.mark.parametrize("n_step", [1, 4])
@pytest.mark.parametrize("kind", ["simulators", "native"])
def test_a_decision_waits_for_the_device_once(kind: str, n_step: int) -> None:
    """For its actions, where simulators take them on the CPU; for what happened, where they run on the device."""
    ended = Counter[str]()
    with Pretended() as device:
        env = _reach(6, device="meta") if kind == "simulators" else Reach(6, max_steps=7, device="meta")
        collector = Collector(env, BiasedController(), Residual(0.1), ProgressiveExploration(50))
        nstep, replay, monitor = NStep(n_step, 0.9), Replay(200), Monitor()
        for _ in range(60):
            before = device.stalls.copy()
            transition, step = collector.decide(uniform_like(collector.action))
            monitor.observe(transition, step)
            complete = nstep.push(transition, step.done)
            if complete is not None:
                replay.add(complete)
                replay.sample(32)
            assert (device.stalls - before).total() == 1, device.stalls - before
            assert isinstance(transition.next_obs, There)
            ended += Counter(late=int((step.done & ~step.terminated).sum()), early=int(step.terminated.sum()))
    assert min(ended["late"], ended["early"]) > 5
    assert collector.base_queries == 6 * 61 + ended["late"]


# ---- questions to the base ------------------------------------------------------------------------------------


def _reach(n: int, **options: Any) -> SimulatorVector:
    return SimulatorVector(replace(TASKS["toy/reach-gym"], max_steps=7), n, **options)


class Asked:
    """A base that counts the calls and the rows it is asked about."""

    context = 1

    def __init__(self, chunk: int) -> None:
        self.base, self.chunk, self.calls, self.rows = BiasedController(), chunk, 0, 0

    def act(self, window: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(window)
        return self.base.act(window).repeat(1, self.chunk, 1) / self.chunk


class Kept(Monitor):
    """Keeps what the environments answered."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def observe(self, t: Transition, step: Step) -> None:
        self.steps.append(step)
        super().observe(t, step)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_base_is_asked_once_per_row_and_decision_and_again_where_time_ran_out(
    chunk: int, overlap: bool, small: Config
) -> None:
    """And never by an update, nor more often because an answer is a chunk."""
    base, kept = Asked(chunk), Kept()
    problem = Problem(_reach(5, chunk=chunk), base, 4, (chunk, 2), 2000, 100)
    run = replace(METHODS["policy-decorator"].build(small, problem), monitor=kept)
    train(TrainConfig(700, 100, overlap=overlap), run, *[lambda *_: None] * 3)  # pyright: ignore[reportArgumentType]
    timed_out = [int((s.done & ~s.terminated).sum()) for s in kept.steps]
    assert min(sum(timed_out), sum(int(s.terminated.sum()) for s in kept.steps)) > 3
    assert base.rows == run.collector.base_queries == 5 + 5 * len(kept.steps) + sum(timed_out)
    assert base.calls == 1 + len(kept.steps) + sum(n > 0 for n in timed_out)
    assert run.collector.step == sum(int(s.env_steps.sum()) for s in kept.steps) > (chunk > 1) * 2 * 5 * len(kept.steps)
    assert run.learner.updates == (run.collector.step - 100) // 4
    run.learn(run.learner.updates + 10)
    assert (base.rows, base.calls) == (run.collector.base_queries, 1 + len(kept.steps) + sum(n > 0 for n in timed_out))
