"""Jump-Start RL (arXiv:2204.02372; paper App. B.5.2): the base opens an episode, a policy from scratch goes on.

    action = base    in the first h environment steps of an episode
             actor   from there on

h begins at the mean length of the base's successful episodes. After every evaluation of the two together it goes back
by `step_back`, if they do as well as they ever did; the first such mean only says how well that is. At 0 the base is
out of the game.
"""

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from policy_decorator.errors import UserError
from policy_decorator.evaluation import Episodes
from policy_decorator.memory import ask
from policy_decorator.methods.alone import Takeover, own_actions, refuse_pictures
from policy_decorator.methods.off_policy import DEMO_SHARE, OffPolicyConfig, assemble, learner_of, networks
from policy_decorator.methods.opening import BaseFirst
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import NetConfig, TanhGaussian
from policy_decorator.rollout import Collector


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Settings of JSRL. The paper names the first; the others are its reference's, or sizes that it leaves open."""

    OWN = DEMO_SHARE

    step_back: int | Literal["auto"] = "auto"
    """Environment steps by which the base hands over earlier; auto: the paper's 10, or as many more as it takes to
    come to 0 in a short run, even if half of its evaluations are no good."""
    begin_episodes: int = 100
    """Episodes of the base (at least; no fewer than are evaluated anyway) whose successes say where h begins."""
    success_window: int | Literal["auto"] = "auto"
    """Evaluations in the moving mean that is compared with the best one; auto: 5, as of one alone chance decides, or a
    quarter of the run's evaluations, where they are few."""
    success_tolerance: float = 0.05
    """How far below the best it may be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [x for x in (self.step_back, self.success_window, self.begin_episodes) if x != "auto"]
        if min(given) < 1:
            raise UserError("step_back, success_window and begin_episodes must be at least 1.")
        if self.learner == "ppo":
            raise UserError("jsrl learns with sac or td3: leave out learner = ppo, and the preset ppo.")


WINDOW = 5
"""By the mean of so many evaluations of 20 episodes chance moves a rate by 0.05, one standard error."""
STEP_BACK = 10
"""The paper's, whose runs have 60 evaluations."""


class Successor(TanhGaussian):
    """The actor; it carries along after how many steps of the base it was trained to take over."""

    guide_steps: Tensor

    def __init__(self, input_size: int, chunk: tuple[int, int], cfg: NetConfig | None = None) -> None:
        super().__init__(input_size, chunk, cfg)
        self.register_buffer("guide_steps", torch.zeros((), dtype=torch.int64))


@dataclass
class Curriculum:
    """Decides on h by the evaluations it is told of, the base's own first; as a gate it lets the actor act behind h."""

    actor: Successor
    chunk: int
    """Environment steps per decision."""
    cfg: Config
    evaluations: int = 60
    """Of base and actor together, in all of the training."""
    begin: int | None = None
    """h at first; None until the base's own evaluation has said it."""
    recent: deque[float] = field(default_factory=deque)
    best: float | None = None
    """Of base and actor together."""

    def __call__(self, step: int, episode_step: Tensor) -> Tensor:
        return episode_step * self.chunk >= self.actor.guide_steps

    def evaluated(self, episodes: Episodes) -> None:
        """Begin at the mean length of what succeeded (of all, if nothing did), or go back if all is well."""
        if self.begin is None:
            counted = episodes.env_steps[episodes.success] if episodes.success.any() else episodes.env_steps
            self.begin = round(float(counted.mean()))
            self.actor.guide_steps.fill_(self.begin)
            return
        self.recent.append(episodes.rate)
        if len(self.recent) < self.window:
            return
        mean = sum(self.recent) / len(self.recent)
        self.recent.popleft()
        if self.best is None:  # as in its reference: nothing of the kind to compare it with
            self.best = mean
            return
        # Differs from the paper: there a mean above best + tolerance, too, would not count as good enough.
        if mean > self.best - self.cfg.success_tolerance - 1e-9:
            self.actor.guide_steps.sub_(self.step_back).clamp_(min=0)
        self.best = max(self.best, mean)

    @property
    def step_back(self) -> int:
        """Of the evaluations those count that can move h and are followed by another: it is to be seen at 0."""
        if self.cfg.step_back != "auto":
            return self.cfg.step_back
        moves = (self.evaluations - self.window - 1) // 2
        return max(STEP_BACK, math.ceil((self.begin or 0) / max(moves, 1)))

    @property
    def window(self) -> int:
        """Evaluations in a mean."""
        if self.cfg.success_window != "auto":
            return self.cfg.success_window
        return max(1, min(WINDOW, self.evaluations // 4))

    def state(self) -> dict[str, Any]:
        steps = int(self.actor.guide_steps)
        return {"begin": self.begin, "recent": list(self.recent), "best": self.best, "guide_steps": steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.begin, self.recent, self.best = state["begin"], deque(state["recent"]), state["best"]
        self.actor.guide_steps.fill_(state["guide_steps"])


@dataclass(frozen=True)
class JumpStarted(BaseFirst):
    """Base policy and successor as one policy."""

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da); the base is asked at every decision, as it is in training."""
        rows = torch.arange(len(window)) if rows is None else rows
        base = ask(self.base, window, rows)
        raw = self.actor.mode(self.composition.actor_input(window[:, -1], base))
        own = self.composition.execute(base, raw)
        return self.handed_over(rows, base, own, getattr(self.actor, "guide_steps", 0))


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: a task with pictures."""
    refuse_pictures("jsrl", p)
    composition = Takeover()
    plain, critics = networks(cfg, p, p.obs_size, p.obs_size, p.action_size)
    actor = Successor(p.obs_size, p.chunk, cfg.nets).to(p.device)
    actor.load_state_dict(plain.state_dict() | {"guide_steps": actor.guide_steps})
    curriculum = Curriculum(actor, p.chunk[0], cfg, p.evaluations)
    learner, explores = learner_of(cfg, p, actor, critics, composition)
    run = assemble(
        cfg,
        replace(p, demonstrated=own_actions(p.demonstrated)),
        collector=Collector(
            p.env, p.base, composition, curriculum, cfg.reward_shift, p.seed, success_ends_value=cfg.success_ends_value
        ),
        learner=learner,
        explores=explores,
        policy=JumpStarted(p.base, actor, composition),
        monitor=Monitor(composition.idle),
    )
    return replace(
        run,
        base_episodes=cfg.begin_episodes,
        evaluated=curriculum.evaluated,
        facts=lambda: {"guide_steps": int(actor.guide_steps)},
    )
