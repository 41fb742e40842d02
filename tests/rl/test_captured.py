"""Updates that are replayed: the same numbers, counts and snapshots as without. The graphs themselves need a GPU."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policy_decorator import api
from policy_decorator.decorator import Residual
from policy_decorator.envs.toy import BiasedController, Reach
from policy_decorator.methods import METHODS, Problem
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.refine import RefineConfig
from policy_decorator.rl.captured import WARM_UP, Captured, Metrics, Work
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.rl.selection import Selection
from policy_decorator.rl.td3 import TD3
from policy_decorator.snapshot import capture
from policy_decorator.train import TrainConfig, train
from policy_decorator.types import Transition

DO, DA, B = 5, 2, 16
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KINDS = ("sac", "ensemble", "selection", "td3")


def _learner(kind: str = "sac", actor_every: int = 1, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    nets = NetConfig(width=16, depth=2, critics=4 if kind == "ensemble" else 2)
    actor, critics, residual = TanhGaussian(DO, (1, DA), nets), Critics(DO, DA, nets), Residual(0.3)
    subset = 2 if kind == "ensemble" else None
    cfg = SACConfig(actor_every=actor_every, lr=1e-3, temperature=0.2, critic_subset=subset)
    if kind == "td3":
        return TD3(actor.to(device), critics.to(device), residual, cfg)
    selection = Selection(residual) if kind == "selection" else None
    return SAC(actor.to(device), critics.to(device), residual, DA, cfg, selection)


def _batch(seed: int, n: int = B, device: str = "cpu") -> Transition:
    g = torch.Generator().manual_seed(seed)
    shapes = ((n, DO), (n, 1, DA), (n, 1, DA), (n,), (n,), (n,), (n, DO), (n, 1, DA))
    b = Transition(*(torch.rand(shape, generator=g).to(device) for shape in shapes))
    return b._replace(terminated=(b.terminated > 0.8).float(), decisions=torch.ones_like(b.decisions))


def _state(learner: Any) -> dict[str, Any]:
    """As a snapshot keeps it."""
    parts = {name: copy.deepcopy(x.state_dict()) for name, x in vars(learner).items() if hasattr(x, "state_dict")}
    tensors = {name: x.detach().clone() for name, x in vars(learner).items() if isinstance(x, Tensor)}
    return parts | tensors | {"updates": learner.updates}


def _restore(learner: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        x = getattr(learner, name)
        if hasattr(x, "state_dict"):
            x.load_state_dict(copy.deepcopy(value))
        elif isinstance(x, Tensor):
            x.detach().copy_(value)
    learner.updates = state["updates"]


def _assert_same(one: Any, two: Any, close: bool = False) -> None:
    if isinstance(one, Tensor):
        tolerance = {"rtol": 1e-3, "atol": 1e-4} if close else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(one, two, **tolerance)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            _assert_same(one[key], two[key], close)
    elif isinstance(one, list | tuple):
        for x, y in zip(one, two, strict=True):
            _assert_same(x, y, close)
    else:
        assert one == two


class Again:
    """Stands for CUDA graphs: recording changes nothing, a replay does the recorded work on the recorded memory.

    Like a graph, a replay asks nobody which work it is, and its metrics are written to the same place every time.
    """

    def __init__(self, learner: Any) -> None:
        self.learner, self.ran, self.replayed = learner, 0, list[int]()
        self.flags: list[bool] = []

    def run(self, work: Work) -> Metrics:
        self.ran += 1
        return work()

    def record(self, work: Work) -> tuple[Callable[[], None], Metrics]:
        optimizers = [x for x in vars(self.learner).values() if isinstance(x, torch.optim.Optimizer)]
        self.flags.append(all(group["capturable"] for opt in optimizers for group in opt.param_groups))
        moments = [x for opt in optimizers for state in opt.state.values() for x in state.values()]
        learned = [x for part in vars(self.learner).values() if isinstance(part, nn.Module) for x in part.parameters()]
        memory = [*moments, *learned, *(x for x in vars(self.learner).values() if isinstance(x, Tensor))]
        before, rng, at = [x.detach().clone() for x in memory], torch.get_rng_state(), self.learner.updates
        outputs = work()
        for x, value in zip(memory, before, strict=True):
            x.detach().copy_(value)  # in place: graphs know the memory, not whose it is
        torch.set_rng_state(rng)
        number = len(self.flags)

        def replay() -> None:
            self.replayed.append(number)
            now = self.learner.updates
            self.learner.updates = at  # the kind of update that was recorded, whatever is due
            for name, value in work().items():
                outputs[name].copy_(value)
            self.learner.updates = now

        return replay, outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actor_every", [1, 2, 3])
def test_replayed_updates_are_the_updates(kind: str, actor_every: int) -> None:
    eager, learner = _learner(kind, actor_every), _learner(kind, actor_every)
    recorder = Again(learner)
    captured, kept = Captured(learner, recorder), list[tuple[Metrics, Metrics]]()
    torch.manual_seed(1)
    wanted = [eager.update(_batch(k)) for k in range(20)]
    torch.manual_seed(1)
    for k in range(20):
        kept.append((captured(_batch(k)), wanted[k]))
        assert learner.updates == k + 1  # warm-up counts, recording does not
    _assert_same(_state(learner), _state(eager))
    for got, expected in kept:
        _assert_same(got, expected)  # also those of long ago: nobody writes over them
    variants = 1 if actor_every == 1 else 2
    assert recorder.ran == variants * WARM_UP
    assert len(recorder.replayed) == 20 - recorder.ran
    assert set(recorder.replayed) == set(range(1, variants + 1))
    assert recorder.flags == [True] * variants  # Adam may be recorded,
    groups = [group for opt in captured.optimizers for group in opt.param_groups]
    assert [group["capturable"] for group in groups] == [False] * (
        2 if kind == "td3" else 3
    )  # and no snapshot shows it


def test_every_batch_is_copied_to_the_same_place() -> None:
    learner = _learner()
    captured = Captured(learner, Again(learner))
    places = set[tuple[int, ...]]()
    for k in range(6):
        b = _batch(k)
        captured(b)
        assert captured.batch is not None
        _assert_same(tuple(captured.batch), tuple(b))
        assert not {x.data_ptr() for x in b} & {x.data_ptr() for x in captured.batch}
        places.add(tuple(x.data_ptr() for x in captured.batch))
    assert len(places) == 1
    with pytest.raises(ValueError, match=r"batches of \(16, 5\), not \(1, 5\)"):
        captured(_batch(0, n=1))  # which would fit by broadcasting
    with pytest.raises(ValueError, match="batches of"):
        captured(_batch(0, n=8))


@pytest.mark.parametrize("at", [2, 5, 9])
def test_a_restored_learner_is_recorded_anew_and_goes_on_the_same(at: int) -> None:
    """Adam's moments are other tensors then: a graph of before would go on with the old ones."""
    learner = _learner(actor_every=2)
    recorder = Again(learner)
    captured = Captured(learner, recorder)
    torch.manual_seed(1)
    for k in range(at):
        captured(_batch(k))
    state, rng = _state(learner), torch.get_rng_state()
    for k in range(at, 25):
        captured(_batch(k))
    whole = _state(learner)
    _restore(learner, state)
    torch.set_rng_state(rng)
    for k in range(at, 25):
        captured(_batch(k))
    _assert_same(_state(learner), whole)
    assert recorder.ran == 4 * WARM_UP  # two variants, twice
    assert set(recorder.replayed) == {1, 2, 3, 4}


def test_a_run_learns_through_it_where_it_has_one(small: Config) -> None:
    ends = []
    for captures in (False, True):
        torch.manual_seed(2)
        problem = Problem(Reach(4), BiasedController(), 4, (1, 2), 2000, 100)
        run = METHODS["policy-decorator"].build(small, problem)
        assert run.captured is None  # on a CPU
        if captures:
            recorder = Again(run.learner)
            run = replace(run, captured=Captured(run.learner, recorder))
        train(TrainConfig(400, 100), run, *[lambda *_: None] * 3)  # pyright: ignore[reportArgumentType]
        ends.append(capture(run))
    assert len(recorder.replayed) == 75 - WARM_UP
    _assert_same(*ends)


# ---- on a GPU -------------------------------------------------------------------------------------------------


@CUDA
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actor_every", [1, 2])
def test_graphs_do_what_updates_do(kind: str, actor_every: int) -> None:
    eager, learner = (_learner(kind, actor_every, "cuda") for _ in range(2))
    captured = Captured(learner)
    torch.manual_seed(1)
    wanted = [eager.update(_batch(k, device="cuda")) for k in range(24)]
    torch.manual_seed(1)  # graphs draw the random numbers that would have been drawn
    got = [captured(_batch(k, device="cuda")) for k in range(24)]
    assert learner.updates == eager.updates == 24
    assert len(captured.recorded) == min(actor_every, 2)
    _assert_same(_state(learner), _state(eager), close=True)
    _assert_same(got, wanted, close=True)


@CUDA
@pytest.mark.parametrize("kind", KINDS)
def test_neither_updates_nor_replays_wait_for_the_device(kind: str) -> None:
    learner, eager = _learner(kind, 2, "cuda"), _learner(kind, 2, "cuda")
    captured, batches = Captured(learner), [_batch(k, device="cuda") for k in range(20)]
    for b in batches:
        captured(b)
        eager.update(b)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for b in batches:
            captured(b)
            eager.update(b)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(captured.recorded) == 2


@CUDA
def test_graphs_go_on_from_a_snapshot() -> None:
    learner = _learner("sac", 2, "cuda")
    captured = Captured(learner)
    for k in range(12):
        captured(_batch(k, device="cuda"))
    state, rng = _state(learner), torch.cuda.get_rng_state()
    ends = []
    for fresh in (False, True):
        if fresh:
            learner = _learner("sac", 2, "cuda")
            captured = Captured(learner)
            _restore(learner, state)
            torch.cuda.set_rng_state(rng)
        for k in range(12, 30):
            captured(_batch(k, device="cuda"))
        ends.append(_state(learner))
    _assert_same(*ends, close=True)


@CUDA
@pytest.mark.parametrize("task", ["toy/reach", "toy/reach-gym"])
def test_a_run_on_the_gpu_counts_as_one_on_the_cpu_and_can_be_resumed(
    task: str, tmp_path: Path, make_config: Callable[..., RefineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("film", "write_report"):
        monkeypatch.setattr(api, name, lambda *_: None)
    counts = []
    for device in ("cpu", "cuda"):
        config = make_config(task, total_steps=300, save_every=150, device=device, overlap=True)
        api.run(config, BiasedController(), out=tmp_path / device)
        longer = replace(config, train=replace(config.train, total_steps=500))
        summary = api.run(longer, BiasedController(), out=tmp_path / device, resume=True).summary
        counts.append([summary[name] for name in ("env_steps", "decisions", "updates")])
    assert counts[0] == counts[1] == [500, 500, 100]
