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
        obs, _, terminated, truncated, info = self.env.step(np.clip(action, -1, 1).astype(np.float32))
        told = [info[name] for name in SUCCESS if name in info]
        if not told:
            raise UserError(
                "The environment does not say whether it is solved: let its info have `success` at every step, or "
                "register one that wraps it and does."
            )
        success = bool(np.all(told[0]))
        return obs.astype(np.float32), float(success), bool(terminated), bool(truncated), {"success": success}


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
    except Exception as error:  # whatever its constructor raises
        raise UserError(
            f"{env_id} cannot be made without arguments ({_said(error)}): register it with all it needs, as `kwargs`."
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
    _try(env_id, SparseSuccess(env))
    return Task(
        name,
        gym.spaces.flatdim(observed),
        acted.shape[0],
        spec.max_episode_steps,
        float(env.metadata.get("render_fps") or 0),
        f"the environment says so ({' or '.join(SUCCESS)} in its info)",
        "recorded from a policy: pidec demos TASK --from-policy",
        partial(make_env, spec),
        note=_mapped(acted),
        renders="rgb_array" in (env.metadata.get("render_modes") or ()),
    )


def _try(env_id: str, env: SparseSuccess) -> None:
    """A reset, a step and the same reset again: raises UserError now for what would come to light after hours."""
    try:
        first, _ = env.reset(seed=0)
        second = env.step(np.zeros(env.action_space.shape or (), np.float32))[0]
        again, _ = env.reset(seed=0)
    except UserError:
        raise
    except Exception as error:  # whatever a foreign environment raises
        raise UserError(
            f"{env_id} does not follow Gymnasium's interface, reset(seed=...) -> (obs, info) and step(action) -> (obs, "
            f"reward, terminated, truncated, info): {_said(error)}. gymnasium.utils.env_checker.check_env says more."
        ) from error
    size = env.observation_space.shape
    for obs, when in ((first, "a reset"), (second, "a step"), (again, "a reset")):
        if obs.shape != size or not np.isfinite(obs).all():
            problem = f"has shape {obs.shape}, its observation space {size}" if obs.shape != size else "is not finite"
            raise UserError(f"The observation of {env_id} after {when} {problem}.")
    if not np.allclose(first, again, rtol=0, atol=1e-4):
        raise UserError(
            f"{env_id} begins differently each time it is reset with the same seed: let its layout be drawn from "
            "self.np_random. Base and refined policy are compared on the same episodes."
        )


def _mapped(acted: gym.spaces.Box) -> str:
    """What is to be known of actions in other bounds than [-1, 1]."""
    if (acted.low == -1).all() and (acted.high == 1).all():
        return ""
    low, high = acted.low.min(), acted.high.max()
    return f"Policies act in [-1, 1], which is mapped to the environment's bounds ({low:.4g} to {high:.4g})."


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
