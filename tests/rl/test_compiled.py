"""Compiled updates: the same learning for every kind of learner, and no worse off without a compiler."""

from functools import partial
from typing import Any

import pytest
import torch
from learners import KINDS, assert_same, new_batch, new_learner, restore_to, state_of
from torch._dynamo.exc import InternalTorchDynamoError

from policy_decorator.rl import compiled, descent
from policy_decorator.rl.captured import Captured
from policy_decorator.rl.compiled import Compiled


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_updates_learn_the_same_and_go_on_from_a_snapshot(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all but the first kind the graphs are made and run, without kernels of their own: those take a minute."""
    if kind != KINDS[0]:
        monkeypatch.setattr(compiled.torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, learner = new_learner(kind, actor_every=2), new_learner(kind, actor_every=2)
    update = Compiled(learner)
    torch.manual_seed(1)
    wanted = [plain.update(new_batch(k, kind=kind)) for k in range(12)]
    torch.manual_seed(1)
    got = [update(new_batch(k, kind=kind)) for k in range(6)]
    state, rng = state_of(learner), torch.get_rng_state()
    for k in range(6, 9):
        update(new_batch(k, kind=kind))
    restore_to(learner, state)  # Adam's moments are other tensors now
    threads = torch.get_num_threads()
    if kind == "td3":
        torch.set_num_threads(threads + 1)  # for which it is compiled anew
    torch.set_rng_state(rng)
    got += [update(new_batch(k, kind=kind)) for k in range(6, 12)]
    torch.set_num_threads(threads)
    assert learner.updates == 12
    assert update.works == {False: True, True: True}
    assert_same(got, wanted, close=True)
    assert_same(state_of(learner), state_of(plain), close=True)


def test_they_see_the_scale_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes from step to step (`rl.scale.ProgressiveScale`), and graphs are made once."""
    monkeypatch.setattr(compiled.torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, learner = new_learner(), new_learner()
    actors: list[Any] = [plain.actor, learner.actor]
    update = Compiled(learner)
    for k, scale in enumerate((0.1, 0.1, 0.9)):
        for actor in actors:
            actor.scale.fill_(scale)
        torch.manual_seed(k)
        wanted = plain.update(new_batch(k))
        torch.manual_seed(k)
        assert_same([update(new_batch(k))], [wanted], close=True)
    assert all(update.works.values())
    assert_same(state_of(learner), state_of(plain), close=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("captures", [False, True])
def test_on_a_gpu_they_learn_the_same_too(captures: bool) -> None:
    plain, learner = new_learner("sac", 2, "cuda"), new_learner("sac", 2, "cuda")
    graphs = Compiled(learner)
    update = Captured(learner, graphs.step) if captures else graphs
    batches = [new_batch(k, device="cuda") for k in range(12)]
    torch.manual_seed(1)
    wanted = [plain.update(b) for b in batches]
    torch.manual_seed(1)
    got = [update(b) for b in batches]
    assert graphs.works == {False: True, True: True}
    assert_same(got, wanted, close=True)
    assert_same(state_of(learner), state_of(plain), close=True)


def test_adam_is_called_so_that_it_can_be_compiled_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch looks for steps that are given by name, and never compiles a call where those are on a GPU."""
    called, adam = [], descent.adam
    monkeypatch.setattr(descent, "adam", lambda *args, **how: (called.append(how), adam(*args, **how)))
    new_learner().update(new_batch(0))
    assert called
    assert not any("state_steps" in how for how in called)


def test_without_a_compiler_it_warns_and_learns_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, learner = new_learner(actor_every=2), new_learner(actor_every=2)

    def no_compiler(*_: Any) -> Any:
        raise InternalTorchDynamoError("no C++ compiler found\nand much else")

    monkeypatch.setattr(compiled.torch, "compile", lambda *_, **__: no_compiler)
    update = Compiled(learner)
    torch.manual_seed(1)
    wanted = [plain.update(new_batch(k)) for k in range(4)]
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="learning takes longer: no C\\+\\+ compiler found$") as warned:
        got = [update(new_batch(k)) for k in range(4)]
    assert len(warned) == 2  # once for each kind of update
    assert_same(got, wanted)
    assert_same(state_of(learner), state_of(plain))


def test_what_fails_later_is_no_matter_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = new_learner()
    update = Compiled(learner)
    update.works[True] = True

    def broken(*_: Any) -> Any:
        raise InternalTorchDynamoError("out of luck")

    update.graphs = broken
    with pytest.raises(InternalTorchDynamoError, match="out of luck"):
        update(new_batch(0))
