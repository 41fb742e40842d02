"""Other people's policies: every way of being called, and every wrong answer."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from policy_decorator.base_policies.external import CallablePolicy, as_policy
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.envs.images import together
from policy_decorator.errors import UserError
from policy_decorator.memory import ask
from policy_decorator.progress import Silent
from policy_decorator.refine import Refinement

WEIGHT = np.array([[0.1, -0.2], [0.3, 0.0], [0.0, 0.25]], dtype=np.float32)  # (Do, Da)
WINDOW = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1  # (B, To, Do)
EXPECTED = WINDOW[:, -1] @ torch.from_numpy(WEIGHT)


def numpy_batch(obs: np.ndarray) -> np.ndarray:
    assert isinstance(obs, np.ndarray)
    assert obs.shape[1:] == (3,)
    return obs.astype(np.float64) @ WEIGHT


def numpy_row(obs: np.ndarray) -> list[float]:
    assert isinstance(obs, np.ndarray)
    assert obs.shape == (3,)
    return (obs @ WEIGHT).tolist()


def torch_batch(obs: torch.Tensor) -> torch.Tensor:
    assert isinstance(obs, torch.Tensor)
    assert obs.ndim == 2
    return obs @ torch.from_numpy(WEIGHT)


def torch_row(obs: torch.Tensor) -> torch.Tensor:
    assert isinstance(obs, torch.Tensor)
    assert obs.shape == (3,)
    return obs @ torch.from_numpy(WEIGHT)


def chunk_of_one(obs: torch.Tensor) -> torch.Tensor:
    return (obs @ torch.from_numpy(WEIGHT)).unsqueeze(1)


@pytest.mark.parametrize("fn", [numpy_batch, numpy_row, torch_batch, torch_row, chunk_of_one])
@pytest.mark.parametrize("rows", [1, 5])
def test_every_way_of_being_called(fn: Any, rows: int) -> None:
    policy = CallablePolicy(fn, 2)
    answer = policy.act(WINDOW[:rows])
    assert policy.context == policy.chunk == 1
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, EXPECTED[:rows].unsqueeze(1))
    torch.testing.assert_close(policy.act(WINDOW), EXPECTED.unsqueeze(1))  # another number of rows later


@pytest.mark.parametrize(("fn", "batched"), [(numpy_row, True), (torch_batch, False)])
def test_what_the_caller_says_is_believed(fn: Any, batched: bool) -> None:
    with pytest.raises(UserError, match="cannot be asked"):
        CallablePolicy(fn, 2, batched=batched).act(WINDOW)


def test_a_function_of_one_row_that_seems_to_take_batches_is_called_by_row() -> None:
    def centred(obs: np.ndarray) -> np.ndarray:
        return obs - obs.mean()

    answer = CallablePolicy(centred, 3).act(WINDOW)
    torch.testing.assert_close(answer[:, 0], WINDOW[:, -1] - WINDOW[:, -1].mean(dim=1, keepdim=True))


def test_a_random_batch_policy_is_called_by_batch() -> None:
    shapes = []

    def noisy(obs: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(obs.shape))
        return torch.rand(len(obs), 2)

    CallablePolicy(noisy, 2).act(WINDOW)
    assert shapes[-1] == (5, 3)


def test_a_network_is_asked_without_gradients_and_left_alone() -> None:
    net = torch.nn.Linear(3, 2)
    recorded: list[bool] = []
    net.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    answer = CallablePolicy(net, 2).act(WINDOW)
    assert not any(recorded)
    torch.testing.assert_close(answer[:, 0], net(WINDOW[:, -1]).clamp(-1, 1).detach())
    assert not answer.requires_grad
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert net.training


def test_the_observations_cannot_be_changed_by_the_policy() -> None:
    def vandal(obs: Any) -> Any:
        obs *= 0
        return obs[..., :2]

    window = WINDOW.clone()
    CallablePolicy(vandal, 2).act(window)
    assert torch.equal(window, WINDOW)


def test_actions_are_clamped_as_the_environment_would() -> None:
    answer = CallablePolicy(lambda obs: 100 * obs[:, :2], 2).act(WINDOW)
    torch.testing.assert_close(answer[:, 0], (100 * WINDOW[:, -1, :2]).clamp(-1, 1))


@pytest.mark.parametrize("size", [1.4, 3.0])
def test_actions_in_units_of_the_environment_are_noticed(size: float) -> None:
    """What lies a little beyond the limits is an overshoot."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        as_policy(lambda obs: size * torch.ones(len(obs), 2), 2).act(WINDOW)
    assert [("as large as 3" in str(w.message), "own units" in str(w.message)) for w in said] == [(True, True)] * (
        size > 2
    )


def test_an_action_that_is_not_finite_names_its_row() -> None:
    def broken(obs: torch.Tensor) -> torch.Tensor:
        answer = obs[:, :2].clone()
        answer[3:, 1] = float("nan")
        return answer

    with pytest.raises(UserError, match="row 3 of 5 is not finite"):
        CallablePolicy(broken, 2).act(WINDOW)


def test_the_wrong_number_of_actions_lists_what_was_tried() -> None:
    with pytest.raises(UserError, match="cannot be asked for 4 actions") as caught:
        CallablePolicy(torch_batch, 4).act(WINDOW)
    assert "(2, 2) instead of (2, 1, 4) or (2, 4)" in str(caught.value)
    assert "AssertionError" in str(caught.value)


def test_a_policy_that_changes_its_mind_about_the_shape() -> None:
    def fickle(obs: torch.Tensor) -> torch.Tensor:
        return obs[:, :2] if len(obs) <= 2 else obs

    with pytest.raises(UserError, match=r"shape \(5, 3\) instead of"):
        CallablePolicy(fickle, 2).act(WINDOW)


def test_a_single_action_may_be_a_number() -> None:
    answer = CallablePolicy(lambda obs: float(obs[0]) / 2, 1, batched=False).act(WINDOW)
    torch.testing.assert_close(answer[:, 0, 0], WINDOW[:, -1, 0] / 2)


class StableBaselines:
    """The interface of a Stable-Baselines3 model."""

    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, None]:
        assert isinstance(observation, np.ndarray)
        return observation @ WEIGHT + (0 if deterministic else 1), None


class Predictor:
    def predict(self, obs: np.ndarray) -> np.ndarray:
        return obs @ WEIGHT


class Agent:
    def act(self, obs: np.ndarray) -> np.ndarray:
        return numpy_row(obs)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("policy", [StableBaselines(), Predictor(), Agent(), numpy_batch, torch.nn.Linear(3, 2)])
def test_as_policy_takes_all_kinds(policy: Any) -> None:
    expected = policy(WINDOW[:, -1]).clamp(-1, 1) if isinstance(policy, torch.nn.Module) else EXPECTED
    torch.testing.assert_close(ask(as_policy(policy, 2), WINDOW), expected.detach().unsqueeze(1))


def test_as_policy_leaves_a_base_policy_as_it_is() -> None:
    policy = MLPPolicy(MLPConfig(width=8), 3, 2)
    assert as_policy(policy, 2) is policy
    wrapped = CallablePolicy(numpy_batch, 2)
    assert as_policy(wrapped, 2) is wrapped


@pytest.mark.parametrize("policy", [None, 3, "policy.pt", StableBaselines])
def test_as_policy_refuses_what_is_none(policy: Any) -> None:
    with pytest.raises(UserError, match=r"is not a policy|is a class"):
        as_policy(policy, 2)


def test_as_policy_refuses_another_tasks_policy() -> None:
    with pytest.raises(UserError, match="answers with 2 actions, 4 are needed"):
        as_policy(MLPPolicy(MLPConfig(width=8), 3, 2), 4)


PICTURES = {"state": WINDOW, "rgb": torch.arange(5 * 2 * 3 * 4).view(5, 2, 3, 2, 2).byte()}  # (B, To, ...)


def brightest(state: Any, rgb: Any) -> Any:
    """Two actions, from the state's first entry and the mean of the picture."""
    return [state[..., 0] / 2, rgb[..., 0, 0, 0] / 255.0]


def of_numpy_batches(obs: Any) -> Any:
    assert set(obs) == {"state", "rgb"}
    assert isinstance(obs["rgb"], np.ndarray)
    assert obs["rgb"].ndim == 4
    return np.stack(brightest(**obs), axis=-1)


def of_numpy_rows(obs: Any) -> Any:
    assert isinstance(obs["state"], np.ndarray)
    assert obs["rgb"].shape == (3, 2, 2)
    return brightest(**obs)


def of_tensor_batches(obs: Any) -> Any:
    assert obs["rgb"].dtype == torch.uint8
    assert obs["rgb"].ndim == 4
    return torch.stack(brightest(**obs), dim=-1)


@pytest.mark.parametrize("fn", [of_numpy_batches, of_numpy_rows, of_tensor_batches])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_function_of_pictures_is_given_a_dict(fn: Any, rows: int) -> None:
    window = together(PICTURES | {"frame": torch.arange(10).view(5, 2)}, ndim=2)
    wanted = torch.stack(brightest(PICTURES["state"][:, -1], PICTURES["rgb"][:, -1]), dim=-1)
    before = PICTURES["state"].clone()
    answer = CallablePolicy(fn, 2).act(window[:rows])
    torch.testing.assert_close(answer[:, 0], wanted[:rows])
    torch.testing.assert_close(PICTURES["state"], before, rtol=0, atol=0)  # the trial calls changed nothing


def test_a_chunk_is_executed_in_part_and_windows_are_handed_on() -> None:
    def chunks(windows: torch.Tensor) -> torch.Tensor:
        assert windows.shape[1:] == (2, 3)
        return torch.stack([windows[:, 0, :2], windows[:, 1, :2], windows[:, 1, 1:]], dim=1)

    policy = CallablePolicy(chunks, 2, chunk=2, context=2)
    assert (policy.chunk, policy.context) == (2, 2)
    torch.testing.assert_close(policy.act(WINDOW), WINDOW[..., :2])
    for chunk, reason in ((4, "chunk of 3 actions, 4 are to be executed"), (None, r"CallablePolicy\(fn, 2, chunk=3\)")):
        with pytest.raises(UserError, match=reason):
            CallablePolicy(chunks, 2, chunk=chunk, context=2).act(WINDOW)


@pytest.mark.parametrize("random", [False, True])
def test_a_stochastic_base_is_called_so(random: bool, make_config: Any, steady: Any, noisy: Any) -> None:
    said: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    refinement = Refinement(make_config(workers=0), noisy if random else steady, None, display=Listening())
    refinement.close()
    assert refinement.base_deterministic is not random
    assert any("stochastic" in text for text in said) is random
