"""One decision in B environments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from policy_decorator.memory import AnyPolicy, session
from policy_decorator.stepping import chosen, send
from policy_decorator.types import Composition, Gate, Step, Transition, VectorEnv


@dataclass
class Collector:
    """Steps the environments with base policy + actor and returns what happened.

    The base policy is asked once per decision: its answer for the next observation is stored in the transition and
    then executed at the next decision. Only an episode that runs out of time asks once more, because it has two next
    observations: the one to bootstrap from and the one to go on with.
    """

    env: VectorEnv
    base: AnyPolicy
    composition: Composition
    gate: Gate
    reward_shift: float = -1.0  # reward is success - 1: -1 per failing decision, 0 at success
    seed: int = 0
    sees: Literal["newest", "window"] = "newest"  # of the frames; a window is flattened, oldest first
    success_ends_value: bool = False  # also where the episode goes on

    def __post_init__(self) -> None:
        self.step = self.decisions = self.base_queries = self.episodes = 0
        self.asked = session(self.base)
        self.start(self.seed)

    def start(self, seed: int) -> None:
        """Episodes begin in all rows, the first with `seed`."""
        self.window = self.env.reset(seed)  # (B, To, Do)
        self.rows = torch.arange(len(self.window))
        self.asked.reset(self.rows)
        self.action = self._ask(self.window, self.rows)  # (B, Ta, Da)
        self.episode_step = torch.zeros(len(self.window), dtype=torch.long, device=self.window.device)

    def seen(self, window: Tensor) -> Tensor:
        return window[:, -1] if self.sees == "newest" else window.flatten(1)

    @torch.no_grad()
    def _ask(self, window: Tensor, rows: Tensor) -> Tensor:
        before, answer = self.asked.queries, self.asked.act(window, rows)
        self.base_queries += self.asked.queries - before
        return answer

    def decide(self, propose: Callable[[Tensor], Tensor]) -> tuple[Transition, Step]:
        """`propose` maps what the actor sees to raw actions: the actor, or noise during warm-up."""
        return self.begin(propose)()

    @torch.no_grad()
    def begin(self, propose: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Transition, Step]]:
        """Send the environments off; calling what is returned waits for them and finishes the decision."""
        obs, base = self.seen(self.window), self.action
        open_ = self.gate(self.step, self.episode_step)[:, None, None]
        raw = propose(self.composition.actor_input(obs, base)).view_as(base)
        raw = torch.where(open_, raw, self.composition.idle(base))
        answer = send(self.env, self.composition.execute(base, raw))
        return lambda: self._finish(obs, raw, base, answer())

    @torch.no_grad()
    def _finish(self, obs: Tensor, raw: Tensor, base: Tensor, out: Step) -> tuple[Transition, Step]:
        facts = torch.stack([out.success, out.terminated, out.done])
        success, terminated, done = facts.to(obs.device, non_blocking=True)
        # Behind a termination there is no value to bootstrap: the row's one question is about its new episode.
        self.asked.reset(self.rows[out.terminated])
        self.action = next_base = self._ask(chosen(terminated, out.window, out.final_window), self.rows)
        if len(rows := self.rows[out.done & ~out.terminated]):
            timed_out = rows.to(obs.device, non_blocking=True)
            self.asked.reset(rows)
            self.action = next_base.index_copy(0, timed_out, self._ask(out.window[timed_out], rows))
        self.window = out.window
        self.episode_step = torch.where(done, 0, self.episode_step + 1)
        self.step += int(out.env_steps.sum())
        self.decisions += len(base)
        self.episodes += int(out.done.sum())
        reward = success.float() + self.reward_shift
        ends = (terminated | success if self.success_ends_value else terminated).float()  # a time-out ends no value
        last, ones = self.seen(out.final_window), torch.ones_like(reward)
        return Transition(obs, raw, base, reward, ends, ones, last, next_base), out
