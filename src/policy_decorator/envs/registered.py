"""Anybody's environment, if it is registered with Gymnasium: "gym/MODULE:ID", or "gym/ID" where Gymnasium knows it.

As in `gymnasium.make`, the module is imported, and registers it. What an environment needs to be a task: an observation
that is a vector or a dict of vectors, a bounded continuous action, a time limit, and `info["success"]` or
`info["is_success"]` at every step. Its rewards are not asked for.
"""

from functools import cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import FlattenObservation, RescaleAction

from policy_decorator.envs.rendering import use_renderer
from policy_decorator.envs.task import Task
from policy_decorator.errors import UserError

PREFIX = "gym/"
SUCCESS = ("success", "is_success")


class SparseSuccess(gym.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """float32 observations (Do,), actions (Da,) clipped to [-1, 1]; a bool `info["success"]`, also the reward."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(RescaleAction(FlattenObservation(env), np.float32(-1), np.float32(1)))
        size = gym.spaces.flatdim(env.observation_space)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        obs, _ = self.env.reset(seed=seed, options=options)
        return obs.astype(np.float32), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, _, info = self.env.step(np.clip(action, -1, 1).astype(np.float32))
        told = [info[name] for name in SUCCESS if name in info]
        if not told:
            raise UserError(
                "The environment does not say whether it is solved: let its info have `success` at every step, or "
                "register one that wraps it and does."
            )
        success = bool(np.all(told[0]))
        return obs.astype(np.float32), float(success), bool(terminated), False, {"success": success}


def make_env(spec: EnvSpec, render_mode: str | None = None) -> SparseSuccess:
    """One environment without its own time limit. Raises UserError where it is to draw and nothing can be drawn."""
    how: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True}
    if render_mode is not None:  # an argument that not every environment has
        use_renderer()
        how["render_mode"] = render_mode
    return SparseSuccess(gym.make(spec, **how))


@cache
def registered(name: str) -> Task:
    """The task called "gym/...": one environment is made to see its sizes.

    Raises:
        UserError: Gymnasium does not know it, or it lacks what a task needs.
    """
    env_id = name.removeprefix(PREFIX)
    try:
        env = gym.make(env_id, disable_env_checker=True)
    except (gym.error.Error, ImportError) as error:
        raise UserError(
            f"Gymnasium cannot make {env_id!r} ({error}). Name the module that registers it: {PREFIX}MODULE:ID."
        ) from error
    try:
        return _task(name, env)
    finally:
        env.close()


def _task(name: str, env: gym.Env[Any, Any]) -> Task:
    observed, acted, env_id = env.observation_space, env.action_space, name.removeprefix(PREFIX)
    assert env.spec is not None
    spec = gym.spec(env.spec.id)  # as registered: the other names the wrappers that its maker put around it, too
    if spec.max_episode_steps is None:
        raise UserError(f"{env_id} has no time limit: register it with max_episode_steps.")
    if not isinstance(acted, gym.spaces.Box) or len(acted.shape) != 1 or not acted.is_bounded():
        raise UserError(f"{env_id} has actions of {acted}: a vector with bounds is needed.")
    parts = observed.spaces.values() if isinstance(observed, gym.spaces.Dict) else [observed]
    if not all(isinstance(part, gym.spaces.Box) and len(part.shape) == 1 for part in parts):
        raise UserError(f"{env_id} has observations of {observed}: a vector, or a dict of vectors, is needed.")
    once = SparseSuccess(env)
    once.reset(seed=0)
    once.step(np.zeros(acted.shape, np.float32))  # raises now what it would raise after hours
    return Task(
        name,
        gym.spaces.flatdim(observed),
        acted.shape[0],
        spec.max_episode_steps,
        float(env.metadata.get("render_fps") or 0),
        f"the environment says so ({' or '.join(SUCCESS)} in its info)",
        "recorded from a policy: pidec demos TASK --from-policy",
        partial(make_env, spec),
        renders="rgb_array" in (env.metadata.get("render_modes") or ()),
    )
