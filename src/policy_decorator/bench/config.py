"""What is measured: sizes, task, base policy, and how often."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from policy_decorator.base_policies import build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import load_policy
from policy_decorator.base_policies.imitate import Imitator
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.bench.synthetic import synthetic_task
from policy_decorator.envs import get_task
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError
from policy_decorator.experiments.presets import settings
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.rl.nets import NetConfig

Precision = Literal["float32", "bfloat16"]
RANDOM_BASES = {"bet": BeTConfig, "mlp": MLPConfig}
STEPS_PER_ROUND = 64
"""Environment steps between two rounds of updates (paper Table 9)."""
BOUND = 0.3
"""alpha on Adroit Door (paper Table 8); it costs the same whatever it is."""


@dataclass(frozen=True)
class BenchConfig:
    """Defaults are the paper's settings on Adroit Door."""

    env: str = "adroit/door"
    """A task (pidec list tasks), or synthetic: an environment that costs next to nothing."""
    base: str = "bet"
    """bet or mlp, of their default sizes with random weights, or the folder of a saved policy."""
    obs: int | None = None
    """Observation size; None: the task's, and 39 for synthetic."""
    action: int | None = None
    """Action size; None: the task's, and 28 for synthetic."""
    width: int = NetConfig.width
    """Units per hidden layer of actor and critics."""
    depth: int = NetConfig.depth
    """Hidden layers."""
    critics: int = NetConfig.critics
    """Q functions."""
    batch_size: int = 1024
    """Transitions per update."""
    updates_per_step: float = 0.25
    """Updates per environment step."""
    envs: int = 16
    """Environments stepped together."""
    workers: int | None = None
    """Processes of our simulators; 0: none but the learner's; None: one per core, as in training."""
    replay: int = 1_000_000
    """Transitions in the replay, all of them filled where sampling is timed."""
    threads: tuple[int, ...] = ()
    """Thread counts to measure on a CPU; none given: 1, 2, 4, ... and all cores."""
    precisions: tuple[Precision, ...] = ()
    """Number formats of our hidden layers to measure; none given: float32, and bfloat16 where the processor has it."""
    sb3: bool = True
    """Measure Stable-Baselines3 too."""
    repeats: int = 3
    """How often everything is measured, in turns; the median counts."""
    seconds: float = 0.5
    """Time of one repeat of an update."""
    steps: int = 960
    """Environment steps of one repeat from end to end."""
    calibrate: bool = True
    """Try thread counts and places for the simulators first, for both sides, and go on with the fastest."""
    device: str = "auto"
    """cpu, cuda, or auto."""


QUICK = BenchConfig(repeats=2, seconds=0.1, steps=128, replay=10_000, calibrate=False)
"""A look in a minute."""


def count(n: int, noun: str) -> str:
    """1, "thread" -> "1 thread"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_counts(cfg: BenchConfig) -> tuple[int, ...]:
    """Of the learner on a CPU."""
    powers = {2**k for k in range(cores().bit_length()) if 2**k <= cores()}
    return cfg.threads or tuple(sorted(powers | {cores()}))


def device_of(cfg: BenchConfig) -> torch.device:
    """`cfg.device`, "auto" being CUDA where there is any."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device)


def task_of(cfg: BenchConfig) -> Task:
    """The task, real or synthetic. Raises UserError for sizes that are not the task's."""
    if cfg.env == "synthetic":
        return synthetic_task(cfg.obs or 39, cfg.action or 28)
    task = get_task(cfg.env)
    if (cfg.obs or task.obs_size, cfg.action or task.action_size) != (task.obs_size, task.action_size):
        raise UserError(
            f"{task.name} has {task.obs_size} observations and {task.action_size} actions: leave out --obs and "
            "--action, or use --env synthetic."
        )
    return task


def base_of(cfg: BenchConfig, task: Task) -> Imitator:
    """The base policy. Raises UserError for a folder that holds none or another task's."""
    torch.manual_seed(0)
    if cfg.base in RANDOM_BASES:
        return build(cfg.base, task.obs_size, task.action_size, RANDOM_BASES[cfg.base]())
    base = load_policy(Path(cfg.base))
    if (base.obs_size, base.action_size) != (task.obs_size, task.action_size):
        raise UserError(f"{cfg.base} is the policy of another task than {task.name}.")
    return base


def learn_of(cfg: BenchConfig, precision: Precision = "float32") -> Config:
    """The method's settings: the preset `paper` with the sizes of `cfg`."""
    learn = cast(Config, settings("paper", cfg.env, bound=BOUND).learn)
    nets = NetConfig(width=cfg.width, depth=cfg.depth, critics=cfg.critics, precision=precision)
    return dataclasses.replace(learn, nets=nets, sac=dataclasses.replace(learn.sac, batch_size=cfg.batch_size))
