"""The main job in one command: few and noisy demonstrations, a base policy that half works, one that works."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from policy_decorator import api
from policy_decorator.base_policies.checkpoint import save_policy
from policy_decorator.experiments.bases import BASES, demonstrations, train_base
from policy_decorator.experiments.presets import settings
from policy_decorator.limits import check_numbers
from policy_decorator.progress import Bars, Display
from policy_decorator.refined import Refined
from policy_decorator.runlog import check_free

TASK = "metaworld/peg-insert-side"


@dataclass(frozen=True)
class DemoConfig:
    """Made imperfect on purpose, and honestly: few demonstrations, with noise."""

    episodes: int = BASES[TASK].episodes
    """Demonstrations (successful episodes of the scripted expert)."""
    noise: float = BASES[TASK].noise
    """Standard deviation added to the expert's actions, of actions in [-1, 1]."""
    bound: float | None = None
    """alpha; None takes the preset's."""
    horizon: int | None = None
    """H; None takes the preset's."""
    total_steps: int = 80_000
    """Environment steps of the refinement."""
    seed: int = 0
    """Of everything: demonstrations, base policy, refinement."""
    out: Path = Path("runs/demo")
    """The run folder. A run that it already holds is kept beside it."""


def demo(cfg: DemoConfig, display: Display | None = None) -> Refined:
    """Demonstrations, base policy, refinement and report, into `cfg.out`."""
    display = display or Bars()
    torch.set_num_threads(1)  # for networks as small as these
    recipe = dataclasses.replace(BASES[TASK], episodes=cfg.episodes, noise=cfg.noise)
    config = settings("quick", TASK, bound=cfg.bound, horizon=cfg.horizon, total_steps=cfg.total_steps)
    config = dataclasses.replace(config, seed=cfg.seed, policy=recipe.policy)
    check_numbers(config)  # before demonstrations are recorded
    check_free(cfg.out, overwrite=True)
    demos = demonstrations(recipe, cfg.seed, Path(), display)
    policy = train_base(recipe, demos, cfg.seed, display).policy
    refined = api.run(config, policy, demos=demos, out=cfg.out, display=display, overwrite=True)
    save_policy(policy, cfg.out / "base", details={"task": TASK, "demonstrations": demos.describe()})
    return refined
