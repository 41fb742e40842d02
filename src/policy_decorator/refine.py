"""One refinement, from a policy and a task to a run folder: check, train, evaluate in pairs, report."""

import copy
import dataclasses
from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from policy_decorator import machine, randomness, snapshot
from policy_decorator.base_policies.networks import parameters_of
from policy_decorator.chunks import chunk_of, step_by_step
from policy_decorator.config import RefineConfig
from policy_decorator.decorator import DecoratedPolicy
from policy_decorator.demonstrate import demonstrate
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs import get_task
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError, lookup
from policy_decorator.evaluation import (
    EPISODES_PER_SEED,
    TEST,
    TRAINING,
    VALIDATION,
    Comparison,
    Episodes,
    Gated,
    Played,
    Recorded,
    run_episodes,
)
from policy_decorator.handover import Best, as_base
from policy_decorator.hardware import compiles, device_of, name_of, place_of, used, uses_cuda_graphs, workers_of
from policy_decorator.memory import AnyPolicy
from policy_decorator.methods import METHODS, Problem
from policy_decorator.methods.alone import Nobody
from policy_decorator.methods.finetuned import FineTuned, trained
from policy_decorator.probes import alike, first_answer, tolerance_of, update_of_a_copy
from policy_decorator.progress import Display, Silent
from policy_decorator.refined import Refined
from policy_decorator.rl.scale import ProgressiveScale
from policy_decorator.runlog import CHECKPOINT, RunFolder
from policy_decorator.statistics import paired_gain, wilson
from policy_decorator.train import train
from policy_decorator.types import Transition, VectorEnv


class Refinement:
    """The parts of one run and what is done with them; `refine` says in which order."""

    def __init__(
        self,
        cfg: RefineConfig,
        base: AnyPolicy,
        folder: RunFolder | None,
        demos: Demonstrations | None = None,
        display: Display | None = None,
    ) -> None:
        self.cfg, self.folder, self.display = cfg, folder, display or Silent()
        self.base = step_by_step(base) if cfg.decide == "step" else base
        method = lookup("method", cfg.method, METHODS)
        self.task = get_task(cfg.task).with_episodes(cfg.max_steps, cfg.ends_at_success)
        if getattr(cfg.learn, "base_steps", 0) >= self.task.max_steps:
            raise UserError(
                f"base_steps must be below the time limit of {self.task.name}, {self.task.max_steps} environment "
                "steps: behind it there is nothing to learn from."
            )
        self.device = device_of(cfg)
        self.wanted = {"compiled": compiles(cfg), "cuda_graphs": uses_cuda_graphs(cfg)}
        self.place = place_of(cfg)
        self.chunk = chunk_of(self.base)
        self.hash_before = parameters_of(base)
        self.demo_base_queries = self.eval_env_steps = 0
        if cfg.tune_cpu:
            machine.use_cpu_well(self.device)
        if isinstance(cfg.threads, int):
            torch.set_num_threads(cfg.threads)
        randomness.seed_all(cfg.seed)
        with ExitStack() as opened:  # and closed again where anything fails
            self.eval_env = opened.enter_context(closing(self._vector(min(cfg.envs, cfg.eval_episodes))))
            if self.task.note:
                self.display.say(self.task.note)
            self._ask_once()
            env = opened.enter_context(closing(self._vector(cfg.envs)))
            self.run = method.build(cfg.learn, self._problem(env, demos))
            self.updates = [self.run.update, self.run.offline and self.run.offline.update]
            self._evaluating_at(getattr(cfg.learn, "evaluate_after", ()))
            if isinstance(self.run.policy, FineTuned):
                self.display.say(f"Of the {cfg.method} actor's {trained(self._residual)}")
            if cfg.threads == "auto" and self.device.type == "cpu":
                torch.set_num_threads(
                    machine.fastest_threads(update_of_a_copy(self.run, self.cfg.learn.sac.batch_size))
                )
            self._opened = opened.pop_all()
        self.best = Best()
        self.used_before: dict[str, bool] = {}

    def _vector(self, n: int) -> VectorEnv:
        where = {"workers": workers_of(self.cfg), "device": self.device, "simulation": self.cfg.simulation}
        return make_vector(self.task, n, context=self.base.context, chunk=self.chunk, **where)

    def _problem(self, env: VectorEnv, demos: Demonstrations | None) -> Problem:
        statistics = demonstrated = None
        if demos is not None:
            obs = torch.from_numpy(demos.observations)
            statistics = (obs.mean(0), obs.std(0))
            if self.cfg.learn.uses_demonstrations:
                ends = self.cfg.ends_at_success or self.cfg.learn.success_ends_value
                nobody = Nobody((self.chunk, self.task.action_size), self.base.context)
                asked = self.base if self.cfg.learn.asks_about_demonstrations else nobody
                demonstrated = demonstrate(demos, asked, self.device, ends)
                self.demo_base_queries = demonstrated.base_queries
        most = self.cfg.train.total_steps + self.cfg.envs
        return Problem(
            env=env,
            base=self.base,
            obs_size=self.task.obs_size,
            shapes=self.task.shapes,
            chunk=(self.chunk, self.task.action_size),
            capacity=min(self.cfg.replay_capacity or most, most),
            warmup_steps=self.cfg.train.warmup_steps,
            evaluations=-(-self.cfg.train.total_steps // self.cfg.train.eval_every),
            seed=TRAINING + self.cfg.seed * EPISODES_PER_SEED,
            device=self.device,
            **self.wanted,
            obs_statistics=statistics,
            demonstrated=demonstrated,
            tolerance=self._tolerance,
        )

    def _tolerance(self, hold: int) -> float:
        rows = min(self.cfg.envs, self.cfg.eval_episodes)
        found, steps = tolerance_of(self.base, self.eval_env, rows, hold, self.folder, self.display)
        self.eval_env_steps += steps
        return found

    def _ask_once(self) -> None:
        with randomness.forked():
            self.base_deterministic, answer = first_answer(self.base, self.eval_env, self.task, self.chunk)
        self.first_answer = answer.cpu() if self.base_deterministic else None
        if not self.base_deterministic:
            self.display.say("The base policy is stochastic: asked the same twice, it answers differently.")

    # ---- evaluation -------------------------------------------------------------------------------------------

    def episodes(
        self, policy: AnyPolicy, n: int, seed: int, name: str, title: str = "evaluating", env: VectorEnv | None = None
    ) -> Episodes:
        """Run, count and log the episodes `seed`, ..., `seed + n - 1`."""
        with self.display.stage(title, n) as update:
            result = run_episodes(env or self.eval_env, policy, n, seed, update)
        self.eval_env_steps += result.simulated_steps
        if self.folder is not None:
            seeds = [seed + i for i in range(n)]
            step = self.run.collector.step
            facts = result.success.tolist(), result.env_steps.tolist()
            self.folder.log_evaluation(name, step, seeds, *facts, offline_updates=self._offline_updates)
        return result

    def check_base(self, force: bool) -> None:
        """Step 0 of the curve is the base itself. Raises UserError if it never succeeds, unless forced."""
        n = max(self.cfg.eval_episodes, self.run.base_episodes)
        episodes = self.episodes(self.base, n, VALIDATION, "base", "evaluating the base")
        self._tell(episodes)
        rate = episodes.rate
        self._log({"eval/base": rate, "eval/full": rate, "eval/behaviour": rate})
        base = as_base(cast(DecoratedPolicy, self.run.policy))
        if base is not None and (self._scales or self.cfg.keep == "best"):
            self._keep_if_best(rate, base)
        if rate > 0:
            return
        problem = f"The base policy succeeded in none of {n} episodes of {self.task.name}"
        if not force:
            raise UserError(
                f"{problem}: sparse success gives nothing to learn from. Improve it, check its observations and "
                "actions, or go on all the same with --force (force=True)."
            )
        self.display.say(f"Warning: {problem}; going on because you said so.")

    def evaluate(self, *, candidate: bool = True) -> None:
        """The full residual and, while epsilon < 1, the behaviour at the current epsilon; a `candidate` may be kept."""
        policy, epsilon = self.run.policy, self._epsilon()
        episodes = self.episodes(policy, self.cfg.eval_episodes, VALIDATION, "full")
        full = behaviour = episodes.rate
        if isinstance(policy, DecoratedPolicy) and epsilon < 1.0 and not self._scales:
            gated = dataclasses.replace(policy, composition=Gated(policy.composition, epsilon))
            behaviour = self.episodes(gated, self.cfg.eval_episodes, VALIDATION, "behaviour").rate
        self._log({"eval/full": full, "eval/behaviour": behaviour})
        if candidate:
            self._keep_if_best(full)
        self._tell(episodes)

    def _keep_if_best(self, success: float, base: Mapping[str, Tensor] | None = None) -> None:
        self.best.offer(success, self.run.collector.step, self._residual, base)

    def _evaluating_at(self, updates: Collection[int]) -> None:
        """Let it be evaluated after so many updates too."""
        update = self.run.update or self.run.learner.update

        def watched(b: Transition) -> dict[str, Tensor]:
            metrics = update(b)
            if self.run.learner.updates in updates:
                self.evaluate(candidate=False)  # or this run would have more to choose from than others
            return metrics

        if updates:
            self.run = dataclasses.replace(self.run, update=watched)

    def learn_offline(self) -> None:
        """What is learned before the first environment step, and how far that goes (`eval/offline`)."""
        offline = self.run.offline
        if offline is None or offline.updates >= offline.total:
            return
        with self.display.stage(f"learning offline ({self.cfg.method})", offline.total) as update:

            def log(metrics: Mapping[str, Tensor]) -> None:
                update(offline.updates)
                self.log(metrics)

            offline.learn_all(self.cfg.train.log_every, self.cfg.train.save_every, log, self.save)
        rate = self.episodes(self.run.policy, self.cfg.eval_episodes, VALIDATION, "offline").rate
        self._log({"eval/offline": rate})
        self._keep_if_best(rate)
        self.save()

    def _tell(self, episodes: Episodes) -> None:
        if self.run.evaluated is not None:
            self.run.evaluated(episodes)

    @property
    def _residual(self) -> nn.Module:
        """What is handed over beside the base: the actor, with the critic where that chooses, or all that was tuned."""
        return cast(nn.Module, cast(DecoratedPolicy, self.run.policy).actor)

    # ---- bookkeeping ------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        c = self.run.collector
        return {
            "env_steps": c.step,
            "decisions": c.decisions,
            "updates": self.run.learner.updates,
            "base_queries": c.base_queries,
            "episodes": c.episodes,
            **({"offline_updates": self._offline_updates} if self.run.offline else {}),
        }

    @property
    def _offline_updates(self) -> int:
        return self.run.offline.updates if self.run.offline else 0

    def log(self, metrics: Mapping[str, Tensor]) -> None:
        self._log({name: value.item() for name, value in metrics.items()} | self.run.monitor.read())

    def _log(self, metrics: Mapping[str, float]) -> None:
        if self.folder is not None:
            facts = {f"train/{name}": fact for name, fact in self._facts().items()}
            self.folder.log({**metrics, "train/epsilon": self._epsilon(), **facts}, self.counts())

    def _facts(self) -> dict[str, int]:
        return self.run.facts() if self.run.facts else {}

    def _used(self) -> dict[str, bool]:
        """Whether updates were compiled and replayed from CUDA graphs, here or before a resume."""
        return {name: here or self.used_before.get(name, False) for name, here in used(self.updates).items()}

    @property
    def _scales(self) -> bool:
        """Whether it evaluates what it does in training: the residual as loud as it is there, from silence on."""
        return isinstance(self.run.collector.gate, ProgressiveScale)

    def _epsilon(self) -> float:
        epsilon = getattr(self.run.collector.gate, "epsilon", None)
        return epsilon(self.run.collector.step) if epsilon else 1.0

    def save(self) -> None:
        if self.folder is not None:
            own = {"best": vars(self.best), "eval_env_steps": self.eval_env_steps, "place": self.place}
            own |= {"base_parameters": self.hash_before, "first_answer": self.first_answer, "used": self._used()}
            state = snapshot.capture(self.run) | own
            snapshot.write(self.folder.path / CHECKPOINT, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the folder is rewound when nothing speaks against it any more. Raises UserError."""
        if state.get("base_parameters") not in (None, self.hash_before):
            raise UserError("The base policy has other parameters than the one this run was begun with: give that one.")
        if self.hash_before is None and not alike(self.first_answer, state.get("first_answer")):
            raise UserError("The base policy answers otherwise than the one this run was begun with: give that one.")
        snapshot.restore(self.run, state)
        if not snapshot.remembers(state):
            self.display.say("What the base policy remembered could not be saved: its episodes begin anew.")
        self.best, self.eval_env_steps = Best(**state["best"]), state["eval_env_steps"]
        self.used_before = state.get("used", {})
        if self.folder is not None:
            self.folder.rewind(self.run.collector.step, self._offline_updates)
            self.folder.atomic_json("config.json", self.cfg)  # with its larger budget, where it was given one

    # ---- the end ----------------------------------------------------------------------------------------------

    def compare(self) -> tuple[Refined, Comparison]:
        """Base and refined policy on the same test episodes."""
        step = self.run.collector.step
        if self.cfg.keep != "last" and self.best.actor is not None:
            self._residual.load_state_dict(self.best.actor)
            step = self.best.step
            if self.best.base:
                self.display.say("No evaluation was as good as the base's own: the base is handed over as it is.")
        policy = cast(DecoratedPolicy, self.run.policy)
        comparison = Comparison(self._play(self.base, "base"), self._play(policy, "final"))
        summary = self._summary(comparison.base.episodes, comparison.refined.episodes, step)
        if summary["gain"] < 0:
            self.display.say("Warning: the refined policy did worse than the base on the test episodes: keep the base.")
        trained: Any = self._residual
        actor = trained.merged() if hasattr(trained, "merged") else copy.deepcopy(trained)
        actor.requires_grad_(False)
        known = {"task": self.task.name, "obs_size": self.task.obs_size, "summary": summary, "shapes": self.task.shapes}
        return Refined(dataclasses.replace(policy, actor=actor), **known), comparison

    def _play(self, policy: AnyPolicy, name: str) -> Played:
        env = Recorded(self.eval_env)
        title = f"testing {'the base' if name == 'base' else 'the refined policy'}"
        return Played(self.episodes(policy, self.cfg.test_episodes, TEST, name, title, env), env.trajectories)

    def _summary(self, base: Episodes, refined: Episodes, kept_step: int) -> dict[str, Any]:
        gain, n = paired_gain(base.success, refined.success), len(base.success)
        hash_after = parameters_of(self.base)
        if hash_after != self.hash_before:
            raise RuntimeError("the base policy's parameters changed during refinement: it must stay frozen")
        return {
            "task": self.task.name,
            "method": self.cfg.method,
            "policy": self.cfg.policy,
            "seed": self.cfg.seed,
            "base_success": base.rate,
            "base_ci95": wilson(int(base.success.sum()), n),
            "refined_success": refined.rate,
            "refined_ci95": wilson(int(refined.success.sum()), n),
            "gain": gain.gain,
            "gain_ci95": (gain.low, gain.high),
            "fixed": gain.fixed,
            "broken": gain.broken,
            "test_episodes": n,
            "base_mean_steps": float(np.mean(base.env_steps)),
            "refined_mean_steps": float(np.mean(refined.env_steps)),
            **self.counts(),
            "demo_base_queries": self.demo_base_queries,
            "eval_env_steps": self.eval_env_steps,
            "device": name_of(self.device),
            "simulation": self.place["simulation"],
            **self._used(),
            "threads": torch.get_num_threads(),
            "wall_seconds": round(self.folder.wall_seconds, 1) if self.folder else None,
            "bound": getattr(self.run.collector.composition, "bound", None),
            "horizon": getattr(self.run.collector.gate, "horizon", None),
            **self._facts(),
            "kept_checkpoint_step": kept_step,
            "base_parameters_sha256": hash_after,
            "base_deterministic": self.base_deterministic,
        }

    def close(self) -> None:
        """The environments; safe to call twice."""
        self._opened.close()


def refine(
    cfg: RefineConfig,
    base: AnyPolicy,
    folder: RunFolder | None = None,
    *,
    demos: Demonstrations | None = None,
    display: Display | None = None,
    resume: dict[str, Any] | None = None,
    force: bool = False,
) -> tuple[Refined, Comparison]:
    """Learn a residual on `base` and compare the two.

    `resume` is a snapshot of the same run (`snapshot.read`), which is emptied once it is restored. Returns the refined
    policy, whose `summary` holds the outcome, and the test episodes of both policies with their trajectories.

    Raises:
        UserError: unknown names, a base that answers wrongly or never succeeds (unless `force`), a full disk.
    """
    with machine.as_it_was(), closing(Refinement(cfg, base, folder, demos, display)) as refinement:
        if resume is None:
            refinement.check_base(force)
        else:
            refinement.restore(resume)
            resume.clear()  # its replay is as large as the run's own
        refinement.learn_offline()
        with refinement.display.stage(f"refining ({cfg.method})", cfg.train.total_steps) as update:

            def log(metrics: Mapping[str, Tensor]) -> None:
                recent = refinement.run.monitor.recent
                note = f"training success {sum(recent) / len(recent):.0%}" if recent else ""
                update(min(refinement.run.collector.step, cfg.train.total_steps), note=note)
                refinement.log(metrics)

            train(cfg.train, refinement.run, log, refinement.evaluate, refinement.save)
        refined, comparison = refinement.compare()
    if folder is not None:
        refined.save(folder.path / "refined")
        folder.write_summary(refined.summary)
    return refined, comparison
