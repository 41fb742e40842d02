"""Real models of Stable-Baselines3 and sb3-contrib as base policies."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from foreign import ACTION, OBS, check_contract, episode, played, real, remembers

from policy_decorator.base_policies.external import as_policy
from policy_decorator.base_policies.sb3 import RecurrentModel, inputs
from policy_decorator.errors import UserError


def spaces(limit: float = 1.0, parts: tuple[int, ...] = ()) -> Any:
    import gymnasium as gym

    def box(size: int) -> Any:
        return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    class Nothing(gym.Env[Any, Any]):
        observation_space = gym.spaces.Dict(dict(zip("ab", map(box, parts), strict=True))) if parts else box(OBS)
        action_space = gym.spaces.Box(-limit, limit, (ACTION,), np.float32)

    return Nothing()


@pytest.mark.parametrize("kind", ["SAC", "PPO", "TD3"])
def test_models(kind: str) -> None:
    model = getattr(real("stable_baselines3"), kind)("MlpPolicy", spaces(), seed=0, device="cpu")
    policy = as_policy(model, ACTION)
    check_contract(policy)
    obs = episode()
    theirs, _ = model.predict(obs.numpy(), deterministic=True)
    np.testing.assert_allclose(played(policy, obs)[:, 0].numpy(), np.clip(theirs, -1, 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["SAC", "PPO"])
def test_models_of_several_inputs_get_them_apart(kind: str) -> None:
    env = spaces(parts=(2, OBS - 2))
    model = getattr(real("stable_baselines3"), kind)("MultiInputPolicy", env, seed=0, device="cpu")
    policy = as_policy(model, ACTION)
    check_contract(policy)
    obs = episode().numpy()
    theirs, _ = model.predict({"a": obs[:, :2], "b": obs[:, 2:]}, deterministic=True)
    np.testing.assert_allclose(played(policy, episode())[:, 0].numpy(), np.clip(theirs, -1, 1), atol=1e-6)
    other = as_policy(getattr(real("stable_baselines3"), kind)("MultiInputPolicy", spaces(parts=(2, 9))), ACTION)
    with pytest.raises(UserError, match=rf"observes 11 numbers \(a, b\), and is shown {OBS}"):
        played(other, episode())


def test_inputs_are_put_together_as_they_are_taken_apart() -> None:
    import gymnasium as gym

    space = spaces(parts=(3, 2)).observation_space
    space.seed(0)
    observed: Any = space.sample()
    flat: Any = gym.spaces.flatten(space, observed)
    model = SimpleNamespace(observation_space=space)
    for obs, of in ((flat, lambda x: x), (np.stack([flat, -flat]), lambda x: np.stack([x, -x]))):
        found = inputs(model, obs)
        assert list(found) == list(observed)
        for name, part in observed.items():
            np.testing.assert_array_equal(found[name], of(part))


def recurrent(**env: Any) -> Any:
    policy = "MultiInputLstmPolicy" if env else "MlpLstmPolicy"
    model = real("sb3_contrib").RecurrentPPO(policy, spaces(**env), seed=0, device="cpu", n_steps=8, batch_size=8)
    with torch.no_grad():  # untrained it hardly moves
        for parameter in model.policy.parameters():
            parameter.mul_(3)
    return model


@pytest.mark.parametrize("env", [{}, {"parts": (2, OBS - 2)}])
def test_a_recurrent_model_keeps_the_state_of_every_row(env: dict[str, Any]) -> None:
    model = recurrent(**env)
    policy = as_policy(model, ACTION)
    assert isinstance(policy, RecurrentModel)
    assert remembers(policy)
    check_contract(policy)
    state, begins, theirs = None, np.ones(1, dtype=bool), []
    for obs in episode().numpy():
        seen = {"a": obs[None, :2], "b": obs[None, 2:]} if env else obs[None]
        action, state = model.predict(seen, state=state, episode_start=begins, deterministic=True)
        begins = np.zeros(1, dtype=bool)
        theirs.append(action)
    np.testing.assert_allclose(played(policy, episode()).numpy(), np.clip(theirs, -1, 1), atol=1e-5)


def test_what_it_remembers_can_be_saved() -> None:
    policy = as_policy(recurrent(), ACTION)
    assert isinstance(policy, RecurrentModel)
    obs, row = episode(), torch.tensor([0])
    one = policy.session()
    for frame in obs[:4]:
        one.act(frame[None, None], row)
    other = policy.session()
    other.restore(one.state())
    torch.testing.assert_close(one.act(obs[4][None, None], row), other.act(obs[4][None, None], row))


def test_models_of_other_actions_are_refused() -> None:
    sac = real("stable_baselines3").SAC
    with pytest.raises(UserError, match="2 actions, 4 are needed"):
        as_policy(sac("MlpPolicy", spaces(), device="cpu"), 4)
    with pytest.raises(UserError, match=r"between -2 and 2.*rescales"):
        as_policy(sac("MlpPolicy", spaces(limit=2), device="cpu"), ACTION)
