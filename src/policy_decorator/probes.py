"""What a run settles by episodes before it learns: what noise the base policy bears (`bound = tolerance`)."""

from policy_decorator.disk import read_json
from policy_decorator.evaluation import PROBES, run_episodes
from policy_decorator.memory import AnyPolicy
from policy_decorator.progress import Display
from policy_decorator.rl.tolerance import BATCHES, EPISODES, Batch, Disturbed, tolerance
from policy_decorator.runlog import RunFolder
from policy_decorator.types import VectorEnv

TOLERANCE = "tolerance.json"
"""In a run folder: how it was found."""


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
