"""The off-policy training loop. Read it from top to bottom; nothing is hooked in elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from policy_decorator.methods.problem import Run
from policy_decorator.rhythm import crosses, due
from policy_decorator.rl.exploration import uniform_like
from policy_decorator.stepping import returns_end


@dataclass(frozen=True)
class TrainConfig:
    """Defaults are the paper's Table 9 and Sec. 5.3. Every number counts environment steps."""

    total_steps: int = 3_000_000
    """Environment steps in all."""
    warmup_steps: int = 8_000
    """Steps with uniform raw actions (where the gate lets them pass; what knows something already acts itself) before
    the first update."""
    steps_per_round: int = 64
    """Environment steps between two rounds of updates."""
    updates_per_step: float = 0.25
    """Gradient steps per environment step."""
    overlap: bool = False
    """Make the updates of a round while the environments take the steps of the next one."""
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
    collector = run.collector
    while collector.step < cfg.total_steps:
        before = collector.step
        knows = before >= cfg.warmup_steps or run.knows or run.offline is not None
        propose = run.explorer if knows else uniform_like(collector.action)
        while collector.step < min(before + cfg.steps_per_round, cfg.total_steps):
            finish = collector.begin(propose)
            if cfg.overlap:  # while the environments step: the updates of the last round, spread over this one
                most = collector.step + collector.action[..., 0].numel()  # steps after this decision
                run.learn(due(min(most - cfg.steps_per_round, before), cfg.warmup_steps, cfg.updates_per_step))
            transition, step = finish()
            run.monitor.observe(transition, step)
            complete = run.intake.push(transition, returns_end(step, collector.success_ends_value))
            if complete is not None:
                run.replay.add(complete)
        if not cfg.overlap or collector.step >= cfg.total_steps:
            run.learn(due(collector.step, cfg.warmup_steps, cfg.updates_per_step))
        if crosses(before, collector.step, cfg.log_every):
            log(run.monitor.learning)
        if crosses(before, collector.step, cfg.eval_every) or collector.step >= cfg.total_steps:
            evaluate()
        if crosses(before, collector.step, cfg.save_every) or collector.step >= cfg.total_steps:
            save()
