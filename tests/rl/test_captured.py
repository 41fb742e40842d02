"""Updates that are replayed: the same numbers, counts and snapshots as without. The graphs themselves need a GPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from learners import KINDS, assert_same, new_batch, new_learner, restore_to, state_of
from torch import Tensor, nn

from policy_decorator import api
from policy_decorator.config import RefineConfig
from policy_decorator.envs.toy import BiasedController, Reach
from policy_decorator.methods import METHODS, Problem
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.rl.captured import WARM_UP, Captured, Metrics, Work
from policy_decorator.rl.sac import SAC
from policy_decorator.snapshot import capture
from policy_decorator.train import TrainConfig, train

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Again:
    """Stands for CUDA graphs: recording changes nothing, a replay does the recorded work on the recorded memory.

    Like a graph, a replay asks nobody which work it is, and its metrics are written to the same place every time.
    """

    def __init__(self, learner: Any) -> None:
        self.learner, self.ran, self.recorded, self.replayed = learner, 0, 0, list[int]()

    def run(self, work: Work) -> Metrics:
        self.ran += 1
        return work()

    def record(self, work: Work) -> tuple[Callable[[], None], Metrics]:
        optimizers = [x for x in vars(self.learner).values() if isinstance(x, torch.optim.Optimizer)]
        moments = [x for opt in optimizers for state in opt.state.values() for x in state.values()]
        learned = [x for part in vars(self.learner).values() if isinstance(part, nn.Module) for x in part.parameters()]
        memory = [*moments, *learned, *(x for x in vars(self.learner).values() if isinstance(x, Tensor))]
        before, rng = [x.detach().clone() for x in memory], torch.get_rng_state()
        outputs = work()
        for x, value in zip(memory, before, strict=True):
            x.detach().copy_(value)  # in place: graphs know the memory, not whose it is
        torch.set_rng_state(rng)
        self.recorded += 1
        number = self.recorded

        def replay() -> None:
            self.replayed.append(number)
            for name, value in work().items():
                outputs[name].copy_(value)

        return replay, outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actor_every", [1, 2, 3])
def test_replayed_updates_are_the_updates(kind: str, actor_every: int) -> None:
    eager, learner = new_learner(kind, actor_every), new_learner(kind, actor_every)
    recorder = Again(learner)
    captured, kept = Captured(learner, learner.step, recorder), list[tuple[Metrics, Metrics]]()
    torch.manual_seed(1)
    wanted = [eager.update(new_batch(k, kind=kind)) for k in range(20)]
    torch.manual_seed(1)
    for k in range(20):
        kept.append((captured(new_batch(k, kind=kind)), wanted[k]))
        assert learner.updates == k + 1  # warm-up counts, recording does not
    assert_same(state_of(learner), state_of(eager))
    for got, expected in kept:
        assert_same(got, expected)  # also those of long ago: nobody writes over them
    variants = 1 if actor_every == 1 else 2
    assert recorder.ran == variants * WARM_UP
    assert len(recorder.replayed) == 20 - recorder.ran
    assert set(recorder.replayed) == set(range(1, variants + 1))


def test_every_batch_is_copied_to_the_same_place() -> None:
    learner = new_learner()
    captured = Captured(learner, learner.step, Again(learner))
    places = set[tuple[int, ...]]()
    for k in range(6):
        b = new_batch(k)
        captured(b)
        assert captured.batch is not None
        assert_same(tuple(captured.batch), tuple(b))
        assert not {x.data_ptr() for x in b} & {x.data_ptr() for x in captured.batch}
        places.add(tuple(x.data_ptr() for x in captured.batch))
    assert len(places) == 1
    with pytest.raises(ValueError, match=r"batches of \(16, 5\), not \(1, 5\)"):
        captured(new_batch(0, n=1))  # which would fit by broadcasting
    with pytest.raises(ValueError, match="batches of"):
        captured(new_batch(0, n=8))


@pytest.mark.parametrize("at", [2, 5, 9])
def test_a_restored_learner_is_recorded_anew_and_goes_on_the_same(at: int) -> None:
    """Adam's moments are other tensors then: a graph of before would go on with the old ones."""
    learner = new_learner(actor_every=2)
    recorder = Again(learner)
    captured = Captured(learner, learner.step, recorder)
    torch.manual_seed(1)
    for k in range(at):
        captured(new_batch(k))
    state, rng = state_of(learner), torch.get_rng_state()
    for k in range(at, 25):
        captured(new_batch(k))
    whole = state_of(learner)
    restore_to(learner, state)
    torch.set_rng_state(rng)
    for k in range(at, 25):
        captured(new_batch(k))
    assert_same(state_of(learner), whole)
    assert recorder.ran == 4 * WARM_UP  # two variants, twice
    assert set(recorder.replayed) == {1, 2, 3, 4}


def test_a_run_learns_through_it_where_it_has_one(small: Config) -> None:
    ends = []
    for captures in (False, True):
        torch.manual_seed(2)
        problem = Problem(Reach(4), BiasedController(), 4, (1, 2), 2000, 100)
        run = METHODS["policy-decorator"].build(small, problem)
        if captures:
            recorder, learner = Again(run.learner), cast(SAC, run.learner)
            run = replace(run, update=Captured(learner, learner.step, recorder))
        train(TrainConfig(400, 100), run, *[lambda *_: None] * 3)  # pyright: ignore[reportArgumentType]
        ends.append(capture(run))
    assert len(recorder.replayed) == 75 - WARM_UP
    assert_same(*ends)


# ---- on a GPU -------------------------------------------------------------------------------------------------


@CUDA
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actor_every", [1, 2])
def test_graphs_do_what_updates_do(kind: str, actor_every: int) -> None:
    eager, learner = (new_learner(kind, actor_every, "cuda") for _ in range(2))
    captured = Captured(learner, learner.step)
    torch.manual_seed(1)
    wanted = [eager.update(new_batch(k, device="cuda", kind=kind)) for k in range(24)]
    torch.manual_seed(1)  # graphs draw the random numbers that would have been drawn
    got = [captured(new_batch(k, device="cuda", kind=kind)) for k in range(24)]
    assert learner.updates == eager.updates == 24
    assert len(captured.recorded) == min(actor_every, 2)
    assert_same(state_of(learner), state_of(eager), close=True)
    assert_same(got, wanted, close=True)


@CUDA
@pytest.mark.parametrize("kind", KINDS)
def test_neither_updates_nor_replays_wait_for_the_device(kind: str) -> None:
    learner, eager = new_learner(kind, 2, "cuda"), new_learner(kind, 2, "cuda")
    captured, batches = Captured(learner, learner.step), [new_batch(k, device="cuda", kind=kind) for k in range(20)]
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
    learner = new_learner("sac", 2, "cuda")
    captured = Captured(learner, learner.step)
    for k in range(12):
        captured(new_batch(k, device="cuda"))
    state, rng = state_of(learner), torch.cuda.get_rng_state()
    ends = []
    for fresh in (False, True):
        if fresh:
            learner = new_learner("sac", 2, "cuda")
            captured = Captured(learner, learner.step)
            restore_to(learner, state)
            torch.cuda.set_rng_state(rng)
        for k in range(12, 30):
            captured(new_batch(k, device="cuda"))
        ends.append(state_of(learner))
    assert_same(*ends, close=True)


@pytest.mark.usefixtures("unreported")
@CUDA
@pytest.mark.parametrize("task", ["toy/reach", "toy/reach-gym"])
def test_a_run_on_the_gpu_counts_as_one_on_the_cpu_and_can_be_resumed(
    task: str, tmp_path: Path, make_config: Callable[..., RefineConfig]
) -> None:
    counts = []
    for device in ("cpu", "cuda"):
        config = make_config(task, total_steps=300, save_every=150, device=device, overlap=True)
        api.run(config, BiasedController(), out=tmp_path / device)
        longer = replace(config, train=replace(config.train, total_steps=500))
        summary = api.run(longer, BiasedController(), out=tmp_path / device, resume=True).summary
        counts.append([summary[name] for name in ("env_steps", "decisions", "updates")])
    assert counts[0] == counts[1] == [500, 500, 100]
