"""Record demonstrations in simulation: a scripted expert's, or those of any policy.

    executed action = clip(clip(act(obs)) + N(0, noise)), both to [-1, 1]; it is what is stored

Noise in the executed action widens what the demonstrations cover while `act` keeps correcting for it (Laskey
et al. 2017, DART).
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_decorator import randomness
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.episode import Episode, episode_of, gather
from policy_decorator.envs.images import together
from policy_decorator.envs.task import Expert, Task
from policy_decorator.errors import UserError
from policy_decorator.memory import AnyPolicy, session
from policy_decorator.types import StatefulPolicy

ATTEMPTS_PER_EPISODE = 10  # a source that succeeds less often than this is not worth waiting for

Progress = Callable[[int, int], None]
"""(episodes kept so far, episodes wanted), after every attempt."""


def record(
    task: Task,
    make_act: Callable[[], Expert],
    episodes: int,
    *,
    seed: int,
    noise: float = 0.0,
    only_successes: bool = True,
    max_attempts: int | None = None,
    progress: Progress | None = None,
    source: str = "recorded",
    env: gym.Env[Any, Any] | None = None,
) -> Demonstrations:
    """Record `episodes` episodes, each of a new `make_act()`: (Do,) -> (Da,).

    They are recorded in `env`, which is closed at the end; by default in a new environment of the task.

    Attempt k resets the environment with `seed + k` and ends at the first success, or at `task.max_steps`.
    `noise` is the standard deviation in units of the action range [-1, 1]. With `only_successes` failures are
    dropped and counted in `details`, and at most `max_attempts` (ten per episode wanted) are made.
    Raises UserError: numbers out of range, attempts run out, an action of another size or not finite.
    """
    if episodes < 1 or seed < 0 or noise < 0:
        raise UserError(
            f"Cannot record {episodes} episodes with seed {seed} and noise {noise}: ask for at least one "
            "episode, a seed and noise of at least 0."
        )
    if max_attempts is None:
        max_attempts = ATTEMPTS_PER_EPISODE * episodes if only_successes else episodes
    kept: list[Episode] = []
    clipped = tried = 0
    env = task.make_env(None) if env is None else env
    try:
        while len(kept) < episodes:
            if tried >= max_attempts:
                raise UserError(_ran_out(task, len(kept), episodes, max_attempts))
            episode, entries = _episode(task, env, make_act(), seed + tried, noise)
            tried += 1
            if episode.success[-1] or not only_successes:
                kept.append(episode)
                clipped += entries
            if progress is not None:
                progress(len(kept), episodes)
    finally:
        env.close()
    details = {
        "noise": noise,
        "clipped_entries": clipped,
        "seed": seed,
        "attempts": tried,
        "dropped": tried - len(kept),
        "only_successes": only_successes,
    }
    return gather(task.name, kept, source, details)


def record_expert(task: Task, episodes: int, *, seed: int, **options: Any) -> Demonstrations:
    """Record the task's scripted expert; `options` as in `record`. UserError if the task has none."""
    options = {"source": "scripted expert", **options}
    if task.make_privileged_expert is not None:
        env = task.make_env(None)
        return record(task, partial(task.make_privileged_expert, env), episodes, seed=seed, env=env, **options)
    if task.make_expert is None:
        raise UserError(f"{task.name} has no scripted expert. {task.demos}")
    return record(task, task.make_expert, episodes, seed=seed, **options)


def record_policy(
    task: Task,
    policy: AnyPolicy,
    episodes: int,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Demonstrations:
    """Record any policy, its chunks executed open loop; `options` as in `record`.

    Windows (1, To, Do) are made on `device` and hold the reset frame in every slot at first. Random numbers are
    seeded with `seed` for sampling policies, and put back afterwards.
    """
    device, asked = torch.device(device), session(policy)
    with randomness.forked():
        randomness.seed_all(seed)
        return record(task, lambda: _in_chunks(asked, device), episodes, seed=seed, **{"source": "policy", **options})


def _in_chunks(policy: StatefulPolicy, device: torch.device) -> Expert:
    """One episode of a policy as a function of the newest frame, (Do,) -> (Da,)."""
    row = torch.zeros(1, dtype=torch.int64)
    policy.reset(row)
    frames: list[Any] = []
    queue: list[np.ndarray] = []

    def act(obs: Any) -> np.ndarray:
        obs = _copy(obs)
        # Every slot of the window holds the first frame until there are enough.
        frames[:] = [*frames[1:], obs] if frames else [obs] * policy.context
        if not queue:
            with torch.no_grad():
                queue.extend(policy.act(_window(frames, device), row)[0].cpu().numpy())  # Ta of (Da,)
        return queue.pop(0)

    return act


def _copy(obs: Any) -> Any:
    """Of one observation, as some environments write into the same array again; a state is float32."""
    return deepcopy(obs) if isinstance(obs, dict) else np.array(obs, dtype=np.float32)


def _window(frames: list[Any], device: torch.device) -> Tensor:
    """(1, To, Do), or a TensorDict (1, To)."""
    if not isinstance(frames[0], dict):
        return torch.as_tensor(np.stack(frames)[None], device=device)
    stacked = {name: np.stack([frame[name] for frame in frames])[None] for name in frames[0]}
    return together({name: torch.as_tensor(x, device=device) for name, x in stacked.items()}, ndim=2)


def _episode(task: Task, env: gym.Env[Any, Any], act: Expert, seed: int, noise: float) -> tuple[Episode, int]:
    """One attempt, and how many entries of its actions had to be clipped."""
    # Not the stream of the environment, which gymnasium starts from the same seed.
    rng = np.random.default_rng([seed, 1])
    seen: list[Any] = []
    actions: list[np.ndarray] = []
    success: list[bool] = []
    clipped = 0
    obs, _ = env.reset(seed=seed)
    for _ in range(task.max_steps):
        proposed = np.asarray(act(obs), dtype=np.float32)  # (Da,)
        if proposed.shape != (task.action_size,) or not np.isfinite(proposed).all():
            raise UserError(
                f"At step {len(actions)} of seed {seed} the action was {proposed}; {task.name} takes "
                f"{task.action_size} finite numbers. Correct whatever acts."
            )
        noisy = np.clip(proposed, -1, 1) + rng.normal(0, noise, proposed.shape)  # (Da,)
        clipped += int(((np.abs(proposed) > 1) | (np.abs(noisy) > 1)).sum())
        action = np.clip(noisy, -1, 1).astype(np.float32)
        seen.append(_copy(obs))
        actions.append(action)
        obs, _, terminated, truncated, info = env.step(action)
        success.append(_succeeded(task, info))
        if success[-1] or terminated or truncated:  # an environment that has ended must not be stepped on
            break
    return episode_of(seen, actions, success, seed), clipped


def _succeeded(task: Task, info: dict[str, Any]) -> bool:
    if "success" not in info:
        raise UserError(f'The environment of {task.name} gave no info["success"], which tells what was achieved.')
    return bool(info["success"])


def _ran_out(task: Task, kept: int, episodes: int, attempts: int) -> str:
    return (
        f"Only {kept} of the {episodes} demonstrations of {task.name} wanted succeeded in {attempts} "
        "attempts. Lower the noise, allow more attempts (max_attempts), ask for fewer, or keep failures "
        "(only_successes=False)."
    )
