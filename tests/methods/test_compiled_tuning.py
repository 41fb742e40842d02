"""Compiled updates of transformers that are tuned: the same draws and so the same learning, at less time of a CPU."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from tuned import untrained_bet

from policy_decorator.config import RefineConfig
from policy_decorator.envs.toy import TASKS
from policy_decorator.envs.vector import make_vector
from policy_decorator.hardware import compiles
from policy_decorator.methods import METHODS, Problem, Run
from policy_decorator.methods.off_policy import compiled_on_cpus
from policy_decorator.rl import compiled
from policy_decorator.rl.compiled import WORTH_IT, Compiled
from policy_decorator.rl.cql import CQLConfig
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.train import TrainConfig

pytest.importorskip("peft", reason="PEFT is not installed")

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("sac-lora", {}),
    "critics first": ("sac-lora", {"critic_first": 3}),
    "pre-trained critics": ("sac-lora", {"critic": "pretrained"}),
    "with demonstrations": ("rlpd", {"actor": "base"}),
    "calibrated": ("cal-ql", {"actor": "base", "offline_updates": 6, "cql": CQLConfig(cql_samples=2)}),
    "from scratch": ("rlpd", {"actor": "gpt"}),
    "optimal transport": ("rot", {}),
}


def _run(way: str, *, compiles: bool) -> Run:
    """With a few decisions in its replay; it draws clusters, not only dropout."""
    torch.manual_seed(3)
    n = 24
    success, lengths = torch.arange(n) % 12 == 11, torch.tensor([12, 12])
    shown = Demonstrated(torch.rand(n, 4), torch.rand(n, 1, 2) - 0.5, torch.rand(n, 1, 2), success, lengths)
    base = untrained_bet(mode="sample").requires_grad_(False)
    env = make_vector(TASKS["toy/reach-gym"].with_episodes(8, True), 3, context=base.context)
    method, changes = WAYS[way]
    sac = SACConfig(gamma=0.9, lr=1e-3, batch_size=32, actor_every=2)
    cfg = replace(METHODS[method].config(), nets=NetConfig(width=16, depth=2), sac=sac, **changes)
    run = METHODS[method].build(cfg, Problem(env, base, 4, (1, 2), 1000, 0, demonstrated=shown, compiled=compiles))
    torch.manual_seed(4)
    for _ in range(24):
        t, step = run.collector.decide(run.explorer)
        if (kept := run.intake.push(t, step.done)) is not None:
            run.replay.add(kept)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_they_draw_and_learn_the_same(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.torch, "compile", partial(torch.compile, backend="aot_eager"))
    learned, updates = [], []
    for faster in (False, True):
        run = _run(way, compiles=faster)
        torch.manual_seed(5)
        if run.offline:
            run.offline.learn_all(10, 10, lambda _: None, lambda: None)
        run.learn(6)
        learner: Any = run.learner
        learned.append([p.detach().clone() for part in (learner.actor, learner.critic) for p in part.parameters()])
        updates += [x for x in (run.update, run.offline and run.offline.update) if faster and x is not None]
    assert updates
    for update in updates:
        assert isinstance(update, Compiled)
        assert update.works == {False: True, True: True}
    fresh: Any = _run(way, compiles=False).learner
    before = [p for part in (fresh.actor, fresh.critic) for p in part.parameters()]
    moved = sum(not torch.equal(p, q) for p, q in zip(learned[0], before, strict=True))
    assert moved > 4
    for plain, other in zip(*learned, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-4)


def test_neither_is_done_on_a_gpu() -> None:
    base, env = untrained_bet(), make_vector(TASKS["toy/reach-gym"], 2, context=2)
    problem = Problem(env, base, 4, (1, 2), 100, 0, compiled=True, cuda_graphs=True)
    on_a_gpu = compiled_on_cpus(replace(problem, device=torch.device("cuda")))
    assert (on_a_gpu.compiled, on_a_gpu.cuda_graphs) == (False, False)


def test_fewer_updates_are_worth_it_where_the_base_learns() -> None:
    train = TrainConfig(total_steps=WORTH_IT, warmup_steps=0, updates_per_step=0.25)
    for method, actor, worth_it in (("rlpd", "base", True), ("rlpd", "mlp", False), ("sac-lora", None, True)):
        learn: Any = METHODS[method].config()
        learn = learn if actor is None else replace(learn, actor=actor)
        assert compiles(RefineConfig("toy/reach-gym", method=method, learn=learn, train=train)) == worth_it
