"""From end to end: our training loop, environments, base policy, replay and updates included."""

import time
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

from policy_decorator import machine
from policy_decorator.bench.child import peak_memory
from policy_decorator.bench.config import (
    STEPS_PER_ROUND,
    BenchConfig,
    Precision,
    base_of,
    count,
    device_of,
    learn_of,
    task_of,
)
from policy_decorator.bench.limit import wait
from policy_decorator.envs.vector import make_vector
from policy_decorator.methods import METHODS, Problem
from policy_decorator.train import TrainConfig, train

WARMUP_STEPS = 4 * STEPS_PER_ROUND
"""Before the first update, on both sides."""


class Question(NamedTuple):
    """What is to be done for `steps` environment steps; `memory` asks for the peak so far instead."""

    what: Literal["train", "collect", "memory"]
    steps: int = 0


@dataclass(frozen=True)
class Setting:
    """How our loop is run."""

    workers: int
    threads: int
    precision: Precision = "float32"
    overlap: bool = False
    """Collecting and updating at the same time."""

    def __str__(self) -> str:
        overlap = ", overlapping" if self.overlap else ""
        return f"{self.precision}, {count(self.threads, 'thread')}, {self.workers} simulator processes{overlap}"


class OurLoop:
    """Answers with environment steps (when collecting, decisions) per second."""

    def __init__(self, cfg: BenchConfig, how: Setting) -> None:
        task, learn, device = task_of(cfg), learn_of(cfg, how.precision), device_of(cfg)
        machine.use_cpu_well(device)
        torch.set_num_threads(how.threads)
        self.device = device
        base = base_of(cfg, task).to(device)
        sizes = {"context": base.context, "chunk": base.chunk}
        self.env = make_vector(task, cfg.envs, **sizes, workers=how.workers, device=device)
        problem = Problem(
            env=self.env,
            base=base,
            obs_size=task.obs_size,
            chunk=(base.chunk, task.action_size),
            capacity=cfg.replay,
            warmup_steps=WARMUP_STEPS,
            device=device,
            compiled=True,
            cuda_graphs=device.type == "cuda",
        )
        self.run = METHODS["policy-decorator"].build(learn, problem)
        rhythm = {"steps_per_round": STEPS_PER_ROUND, "updates_per_step": cfg.updates_per_step}
        self.train = TrainConfig(warmup_steps=WARMUP_STEPS, overlap=how.overlap, **rhythm)
        self._train(WARMUP_STEPS + 2 * STEPS_PER_ROUND)

    def __call__(self, question: Question) -> float | dict[str, int | None]:
        collector, start = self.run.collector, time.perf_counter()
        match question.what:
            case "memory":
                return peak_memory()
            case "train":
                before = collector.step
                self._train(question.steps)
                done = collector.step - before
            case "collect":
                before = collector.decisions
                while collector.decisions - before < question.steps:
                    collector.decide(self.run.explorer)
                done = collector.decisions - before
        wait(self.device)
        return done / (time.perf_counter() - start)

    def _train(self, steps: int) -> None:
        collector = self.run.collector
        cfg = replace(self.train, total_steps=collector.step + steps)
        train(cfg, self.run, lambda _: None, lambda: None, lambda: None)

    def close(self) -> None:
        self.env.close()
