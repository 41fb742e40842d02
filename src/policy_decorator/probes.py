"""What a run settles before it learns: how the base policy answers, what noise it bears (`bound = tolerance`), what an
update of its own costs."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from policy_decorator.disk import read_json
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError
from policy_decorator.evaluation import PROBES, VALIDATION, run_episodes
from policy_decorator.memory import AnyPolicy, ask, session
from policy_decorator.methods import Run
from policy_decorator.progress import Display
from policy_decorator.rl.tolerance import BATCHES, EPISODES, Batch, Disturbed, tolerance
from policy_decorator.runlog import RunFolder
from policy_decorator.types import Transition, VectorEnv

TOLERANCE = "tolerance.json"
"""In a run folder: how it was found."""


def first_answer(base: AnyPolicy, env: VectorEnv, task: Task, chunk: int) -> tuple[bool, Tensor]:
    """Whether the same question has the same answer, and the answer to the first validation episodes' first windows.

    Raises UserError where it is no tensor, of another shape than (N, chunk, Da) or not finite: before hours are spent.
    """
    window = env.reset(VALIDATION)
    answer, again = (ask(session(base), window) for _ in range(2))
    wanted = (len(window), chunk, task.action_size)
    if not isinstance(answer, Tensor):
        raise UserError(f"The base policy answers with a {type(answer).__name__}: `act` must give a torch tensor.")
    if tuple(answer.shape) != wanted:
        raise UserError(f"The base policy answers with shape {tuple(answer.shape)}, {task.name} needs {wanted}.")
    if not answer.isfinite().all():
        raise UserError("The base policy's first action is not finite: look at its observation statistics.")
    return torch.allclose(answer, again, rtol=0, atol=1e-5), answer


def alike(answer: Tensor | None, before: Tensor | None) -> bool:
    """Whether these may be answers of one policy to one question; None: nobody can tell."""
    return answer is None or before is None or torch.allclose(answer, before.cpu(), rtol=0, atol=1e-3)


def update_of_a_copy(run: Run, batch_size: int) -> Callable[[], None]:
    """An update like those of `run`, which leaves no trace in it."""
    learner, c, offline = copy.deepcopy(run.learner), run.collector, run.offline
    obs, action = (x[torch.zeros(batch_size, dtype=torch.long)] for x in (c.seen(c.window), c.action))
    flat = torch.zeros(batch_size, device=action.device)
    batch = Transition(obs, action, action, flat, flat, flat + 1, obs, action)
    batch = batch if run.shaped is None else run.shaped(batch)
    if offline is not None:
        with torch.random.fork_rng():
            batch = offline.data.sample(batch_size)

    def update() -> None:
        with torch.random.fork_rng():
            learner.update(batch)

    return update


def tolerance_of(
    base: AnyPolicy, env: VectorEnv, envs: int, hold: int, folder: RunFolder | None, display: Display
) -> tuple[float, int]:
    """The number, and the environment steps it took in the `envs` rows of `env`.

    Noise is held for `hold` decisions, as exploration's is. A run that goes on has it in its folder, where it is
    written. Raises UserError where the base never succeeds.
    """
    known = folder and folder.path / TOLERANCE
    if known and known.exists():
        return float(read_json(known)["tolerance"]), 0
    each, steps = max(EPISODES, envs), 0
    with display.stage("measuring what noise the base bears", BATCHES * each) as update:

        def play(k: int, amplitude: float) -> Batch:
            nonlocal steps
            result = run_episodes(env, Disturbed(base, amplitude, hold), each, PROBES + k * each)
            steps += result.simulated_steps
            update((k + 1) * each)
            return Batch(amplitude, int(result.success.sum()), each)

        found, batches = tolerance(play)
    if folder is not None:
        tried = [batch._asdict() for batch in batches]
        folder.atomic_json(TOLERANCE, {"tolerance": found, "hold": hold, "batches": tried})
    return found, steps
