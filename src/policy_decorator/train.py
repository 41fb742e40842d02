"""The off-policy training loop. Read it from top to bottom; nothing is hooked in elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from policy_decorator.methods.problem import Run


@dataclass(frozen=True)
class TrainConfig:
    """Defaults are the paper's Table 9 and Sec. 5.3. Every number counts environment steps."""

    total_steps: int = 3_000_000
    """Environment steps in all."""
    warmup_steps: int = 8_000
    """Steps with uniform raw actions (where the gate lets them pass) before the first update."""
    steps_per_round: int = 64
    """Environment steps between two rounds of updates."""
    updates_per_step: float = 0.25
    """Gradient steps per environment step."""
    log_every: int = 1_000
    """Environment steps between two lines of metrics."""
    eval_every: int = 50_000
    """Environment steps between evaluations."""
    save_every: int = 50_000
    """Environment steps between checkpoints to resume from."""


def train(
    cfg: TrainConfig,
    run: Run,
    log: Callable[[Mapping[str, Tensor]], None],
    evaluate: Callable[[], None],
    save: Callable[[], None],
) -> None:
    """Collect, update, log, evaluate and save, until `total_steps` environment steps are done."""
    collector, learner = run.collector, run.learner
    while collector.step < cfg.total_steps:
        before = collector.step
        propose = run.explorer if before >= cfg.warmup_steps else _uniform_like(collector.action)
        while collector.step < min(before + cfg.steps_per_round, cfg.total_steps):
            transition, step = collector.decide(propose)
            run.monitor.observe(transition, step)
            complete = run.nstep.push(transition, step.done)
            if complete is not None:
                run.replay.add(complete)

        owed = int(max(collector.step - cfg.warmup_steps, 0) * cfg.updates_per_step) - learner.updates
        for _ in range(owed if run.replay.size else 0):  # the first n-step returns take n decisions
            run.monitor.learning |= learner.update(run.data.sample(learner.cfg.batch_size))

        if crosses(before, collector.step, cfg.log_every):
            log(run.monitor.learning)
        if crosses(before, collector.step, cfg.eval_every) or collector.step >= cfg.total_steps:
            evaluate()
        if crosses(before, collector.step, cfg.save_every) or collector.step >= cfg.total_steps:
            save()


def crosses(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]."""
    return now // every > before // every


def _uniform_like(action: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda seen: torch.rand_like(action) * 2 - 1
