"""Anybody's environment, if it is registered with Gymnasium: "gym/MODULE:ID", or "gym/ID" where Gymnasium knows it.

As in `gymnasium.make`, the module is imported, and registers it. What an environment needs to be a task: an observation
that is a vector, or a dict of vectors and of RGB pictures beside them, a bounded continuous action, a time limit, and
`info["success"]` or `info["is_success"]` at every step. Its rewards are not asked for.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import RescaleAction

from policy_decorator.envs.rendering import use_renderer
from policy_decorator.envs.task import Images, Task, image_space
from policy_decorator.errors import UserError

PREFIX = "gym/"
SUCCESS = ("success", "is_success")


class Layout:
    """What is in observations of `space`, a vector or a dict of vectors and pictures, in its order.

    Raises UserError: anything else; pictures that are not RGB, of several sizes, or without a vector beside them.
    """

    def __init__(self, space: gym.Space[Any], env_id: str = "The environment") -> None:
        self.space = space
        parts = space.spaces if isinstance(space, gym.spaces.Dict) else {"state": space}
        self.pictures = {name: part for name, part in parts.items() if _is_picture(part)}
        self.vectors = {name: part for name, part in parts.items() if name not in self.pictures}
        if not all(isinstance(part, gym.spaces.Box) and len(part.shape) == 1 for part in self.vectors.values()):
            raise UserError(
                f"{env_id} has observations of {space}: a vector is needed, or a dict of vectors and of RGB pictures, "
                "(H, W, 3) or (3, H, W) uint8."
            )
        sizes = {_chw(part.shape)[1:] for part in self.pictures.values() if part.shape}
        if len(sizes) > 1:
            raise UserError(f"{env_id} observes pictures of several sizes: let it show them all alike.")
        if not self.vectors:
            raise UserError(
                f"{env_id} observes pictures and no vector: let it say what the robot knows of itself, too, such as "
                "its joints, in a dict of both."
            )
        self.size = sum(gym.spaces.flatdim(part) for part in self.vectors.values())
        self.height, self.width = sizes.pop() if sizes else (0, 0)

    def seen(self, obs: Any) -> Any:
        """(Do,) float32; with pictures a dict of that as `state`, and `rgb` (3 k, H, W) of all k of them."""
        given = obs if isinstance(self.space, gym.spaces.Dict) else {"state": obs}
        state = np.concatenate([np.asarray(given[name]) for name in self.vectors]).astype(np.float32)
        if not self.pictures:
            return state
        rgb = [np.asarray(given[name]) for name in self.pictures]
        rgb = [x if _chw(x.shape) == x.shape else x.transpose(2, 0, 1) for x in rgb]
        return {"state": state, "rgb": np.concatenate(rgb)}

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of what is `seen`."""
        if self.pictures:
            return image_space(self.size, len(self.pictures), self.height, self.width, depth=False)
        return gym.spaces.Box(-np.inf, np.inf, (self.size,), np.float32)


def _is_picture(space: gym.Space[Any]) -> bool:
    """RGB; three rows of pixels would be one, too, but nobody looks at those."""
    shape = space.shape or ()
    return space.dtype == np.uint8 and len(shape) == 3 and 3 in (shape[0], shape[2])


def _chw(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a picture as it is shown here."""
    return tuple(shape) if shape[0] == 3 and shape[2] != 3 else (shape[2], *shape[:2])


class SparseSuccess(gym.Wrapper[Any, np.ndarray, Any, Any]):
    """Observations as `Layout` has them, actions (Da,) clipped to [-1, 1]; bool `info["success"]`, also the reward."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(RescaleAction(env, np.float32(-1), np.float32(1)))
        self.layout = Layout(env.observation_space)
        self.observation_space = self.layout.observation_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, _ = self.env.reset(seed=seed, options=options)
        return self.layout.seen(obs), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = self.env.step(np.clip(action, -1, 1).astype(np.float32))
        told = [info[name] for name in SUCCESS if name in info]
        if not told:
            raise UserError(
                "The environment does not say whether it is solved: let its info have `success` at every step, or "
                "register one that wraps it and does."
            )
        success = bool(np.all(told[0]))
        return self.layout.seen(obs), float(success), bool(terminated), bool(truncated), {"success": success}


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
    layout, made = Layout(observed, env_id), partial(make_env, spec)
    _try(env_id, SparseSuccess(env))
    sizes = {"height": layout.height, "width": layout.width, "depth": False, "state_size": layout.size}
    shows = Images(tuple(layout.pictures), **sizes, make_env=made) if layout.pictures else None
    return Task(
        name,
        layout.size,
        acted.shape[0],
        spec.max_episode_steps,
        float(env.metadata.get("render_fps") or 0),
        f"the environment says so ({' or '.join(SUCCESS)} in its info)",
        "recorded from a policy: pidec demos TASK --from-policy",
        made,
        shows=shows,
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
    for obs, when in ((first, "a reset"), (second, "a step"), (again, "a reset")):
        for name, space in _parts(env.observation_space).items():
            part = _parts(obs)[name]
            problem = "is not finite" if not np.isfinite(part).all() else ""
            if (part.shape, part.dtype) != (space.shape, space.dtype):
                found = f"{part.dtype} {part.shape}"
                problem = f"has shape {found}, its observation space {space.dtype} {space.shape}"
            if problem:
                raise UserError(f"The observation of {env_id} after {when} {problem}.")
    begun = (_parts(obs)["state"] for obs in (first, again))  # without pictures: renderers may differ in a pixel
    if not np.allclose(*begun, rtol=0, atol=1e-4):
        raise UserError(
            f"{env_id} begins differently each time it is reset with the same seed: let its layout be drawn from "
            "self.np_random. Base and refined policy are compared on the same episodes."
        )


def _parts(seen: Any) -> dict[str, Any]:
    """State and pictures, of an observation or of its space."""
    seen = getattr(seen, "spaces", seen)
    return seen if isinstance(seen, dict) else {"state": seen}


def _mapped(acted: gym.spaces.Box) -> str:
    """What is to be known of actions in other bounds than [-1, 1]."""
    if (acted.low == -1).all() and (acted.high == 1).all():
        return ""
    low, high = acted.low.min(), acted.high.max()
    return f"Policies act in [-1, 1], which is mapped to the environment's bounds ({low:.4g} to {high:.4g})."


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
