"""The main job in one command: few and noisy demonstrations, a base policy that half works, one that works."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from policy_decorator import api
from policy_decorator.base_policies import build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import save_policy
from policy_decorator.base_policies.imitate import ImitateConfig, Imitator, imitate
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.record import record_expert
from policy_decorator.envs import get_task
from policy_decorator.evaluation import DEMOS
from policy_decorator.experiments.presets import settings
from policy_decorator.progress import Bars, Display
from policy_decorator.refined import Refined

DEMOS_PER_SEED = 10_000


@dataclass(frozen=True)
class DemoConfig:
    """Made imperfect on purpose, and honestly: few demonstrations, with noise."""

    task: str = "metaworld/peg-insert-side"
    """Any task with a scripted expert."""
    policy: Literal["bet", "mlp"] = "bet"
    """The base policy."""
    episodes: int = 15
    """Demonstrations (successful episodes of the scripted expert)."""
    noise: float = 0.3
    """Standard deviation added to the expert's actions, of actions in [-1, 1]."""
    bound: float | None = None
    """alpha; None takes the preset's."""
    horizon: int | None = None
    """H; None takes the preset's."""
    total_steps: int = 41_000
    """Environment steps of the refinement."""
    seed: int = 0
    """Of everything: demonstrations, base policy, refinement."""
    out: Path = Path("runs/demo")
    """The run folder. A run that it already holds is kept beside it."""


def make_base(cfg: DemoConfig, display: Display) -> tuple[Imitator, Demonstrations]:
    """Record the demonstrations and train the base policy on them."""
    task = get_task(cfg.task)
    with display.stage("recording demonstrations", cfg.episodes) as update:
        seed = DEMOS + cfg.seed * DEMOS_PER_SEED
        demos = record_expert(task, cfg.episodes, seed=seed, noise=cfg.noise, progress=update)
    torch.manual_seed(cfg.seed)
    if cfg.policy == "bet":
        # Small enough to train in half a minute on one core: the paper's has 4 layers of 128 and a context of 10 or 20.
        net = BeTConfig(context=5, layers=2, width=64, standardize_obs=True)
        how = ImitateConfig(steps=1_500, batch_size=128, lr=1e-3, seed=cfg.seed)
    else:
        net, how = MLPConfig(), ImitateConfig(steps=2_000, batch_size=256, lr=1e-3, seed=cfg.seed)
    policy = build(cfg.policy, task.obs_size, task.action_size, net)
    with display.stage(f"imitating ({cfg.policy})", how.steps) as update:
        imitate(policy, demos, how, progress=lambda step, steps, row: update(step, note=f"loss {row['loss']:.3f}"))
    return policy, demos


def demo(cfg: DemoConfig, display: Display | None = None) -> Refined:
    """Demonstrations, base policy, refinement and report, into `cfg.out`."""
    display = display or Bars()
    policy, demos = make_base(cfg, display)
    config = settings("quick", cfg.task, bound=cfg.bound, horizon=cfg.horizon, total_steps=cfg.total_steps)
    config = dataclasses.replace(config, seed=cfg.seed, policy=cfg.policy)
    refined = api.run(config, policy, demos=demos, out=cfg.out, display=display, overwrite=True)
    demos.save(cfg.out / "demos.h5")
    save_policy(policy, cfg.out / "base", details={"task": cfg.task, "demonstrations": demos.describe()})
    return refined
