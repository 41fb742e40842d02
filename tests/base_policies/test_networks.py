"""The network behind a policy of others: not in training mode, and bit-identical after a refinement."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from foreign import real
from torch import Tensor, nn

from policy_decorator.base_policies.checkpoint import parameter_hash
from policy_decorator.base_policies.external import CallablePolicy, as_policy
from policy_decorator.base_policies.lerobot import from_lerobot
from policy_decorator.base_policies.networks import network_of, parameters_of
from policy_decorator.base_policies.robomimic import from_robomimic
from policy_decorator.base_policies.sb3 import RecurrentModel
from policy_decorator.chunks import step_by_step
from policy_decorator.envs import get_task
from policy_decorator.errors import UserError
from policy_decorator.refine import refine
from policy_decorator.refined import load
from policy_decorator.rollout import Collector
from policy_decorator.types import Step

TASK = get_task("toy/reach")
OBS, ACTION = TASK.obs_size, TASK.action_size


class Net(nn.Module):
    """Answers with the first numbers, about; as LeRobot's policies do, or by another name."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.linear, self.parts = nn.Linear(OBS, ACTION), nn.Sequential(*parts)
        features = {"observation.state": SimpleNamespace(shape=(OBS,))}
        self.config = SimpleNamespace(input_features=features)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.parts(self.linear(obs)))

    def answer(self, obs: np.ndarray) -> np.ndarray:
        return self(torch.from_numpy(obs)).numpy()


class Acting(Net):
    act = Net.forward


class Planning(Net):
    context = 1

    def act(self, window: Tensor) -> Tensor:
        return self(window[:, -1])[:, None]


class LeRobots(Net):
    def reset(self) -> None:
        self._action_queue: list[Any] = []

    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        return self(batch["observation.state"])


class Robomimics:
    obs_normalization_stats = None

    def __init__(self, net: nn.Module) -> None:
        nets = nn.ModuleDict({"policy": net})
        self.policy = SimpleNamespace(ac_dim=ACTION, nets=nets, obs_shapes={"state": (OBS,)})

    def start_episode(self) -> None: ...

    def __call__(self, ob: dict[str, np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return self.policy.nets["policy"].answer(ob["state"])


def stable_baselines(net: Net) -> Any:
    return SimpleNamespace(policy=net, predict=lambda obs, **how: (net.answer(obs), None))


ADAPTERS: dict[str, tuple[type[Net], Callable[[Any], Any]]] = {
    "a network": (Net, lambda net: as_policy(net, ACTION)),
    "its method": (Net, lambda net: CallablePolicy(net.answer, ACTION)),
    "its act": (Acting, lambda net: as_policy(net, ACTION)),
    "act and context": (Planning, lambda net: as_policy(net, ACTION)),
    "chunks": (Net, lambda net: step_by_step(CallablePolicy(lambda x: net(x)[:, None], ACTION, chunk=1, behind=net))),
    "stable-baselines3": (Net, lambda net: as_policy(stable_baselines(net), ACTION)),
    "recurrent": (Net, lambda net: RecurrentModel(stable_baselines(net), ACTION, ())),
    "lerobot": (LeRobots, lambda net: from_lerobot(net, ACTION)),
    "robomimic": (Net, lambda net: from_robomimic(Robomimics(net), ACTION)),
}


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_its_parameters_are_hashed(name: str) -> None:
    kind, adapted = ADAPTERS[name]
    net = kind()
    policy = adapted(net)
    network = network_of(policy)
    assert network is not None
    assert net in network.modules()
    before = parameters_of(policy)
    assert before is not None
    with torch.no_grad():
        net.linear.bias[0] += 1e-3
    assert parameters_of(policy) != before


@pytest.mark.parametrize("name", sorted(set(ADAPTERS) - {"recurrent", "act and context"}))
def test_a_refinement_leaves_them_bit_identical_and_says_so(name: str, make_config: Any) -> None:
    kind, adapted = ADAPTERS[name]
    policy = adapted(kind())
    before = parameters_of(policy)
    refined, _ = refine(make_config(total_steps=200), policy, force=True)
    assert refined.summary["base_parameters_sha256"] == before == parameters_of(policy)
    assert parameters_of(refined.policy) not in (None, before)  # of both parts


WEIGHT, BIAS = torch.tensor([[-2.0, 0, 2, 0], [0, -2, 0, 2]]), torch.tensor([0.14, 0.06])
"""Of a controller of toy/reach that steers past the goal, and is right now and then."""


def controller() -> nn.Linear:
    linear = nn.Linear(OBS, ACTION)
    linear.load_state_dict({"weight": WEIGHT, "bias": BIAS})
    return linear


def sb3_model(folder: Path) -> Any:
    env = TASK.make_env(None)
    model = real("stable_baselines3").PPO("MlpPolicy", env, policy_kwargs={"net_arch": []}, device="cpu")
    model.policy.action_net.load_state_dict(controller().state_dict())
    return model


def torchscript_file(folder: Path) -> Path:
    traced: Any = torch.jit.trace(controller(), torch.zeros(2, OBS))
    traced.save(folder / "policy.pt")
    return folder / "policy.pt"


def onnx_file(folder: Path) -> Path:
    real("onnxruntime")
    onnx = real("onnx")
    seen, given = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", size])
        for name, size in (("seen", OBS), ("given", ACTION))
    )
    weights = [onnx.numpy_helper.from_array(x.numpy(), name) for name, x in (("weight", WEIGHT), ("bias", BIAS))]
    node = onnx.helper.make_node("Gemm", ["seen", "weight", "bias"], ["given"], transB=1)
    graph = onnx.helper.make_graph([node], "policy", [seen], [given], initializer=weights)
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), folder / "policy.onnx")
    return folder / "policy.onnx"


@pytest.mark.parametrize("make", [sb3_model, torchscript_file, onnx_file])
def test_real_ones_are_refined_as_they_are_and_asked_once_per_decision(
    make: Callable[[Path], Any], tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: Any = load(make(tmp_path), ACTION)
    obs = torch.rand(5, 1, OBS)
    before, hashed = policy.act(obs), parameters_of(policy)
    torch.testing.assert_close(before[:, 0], controller()(obs[:, 0]).clamp(-1, 1).detach())
    ends, finish = {"success": 0, "time-out": 0}, Collector._finish

    def counted(collector: Collector, obs: Tensor, raw: Tensor, base: Tensor, out: Step) -> Any:
        ends["success"] += int(out.terminated.sum())
        ends["time-out"] += int((out.done & ~out.terminated).sum())
        return finish(collector, obs, raw, base, out)

    monkeypatch.setattr(Collector, "_finish", counted)
    config = make_config(total_steps=160, warmup_steps=40, max_steps=10, eval_episodes=2, test_episodes=2)
    summary = refine(config, policy, force=True)[0].summary
    assert min(ends.values()) > 0
    assert summary["base_queries"] == summary["decisions"] + config.envs + ends["time-out"]
    assert summary["base_parameters_sha256"] == hashed == parameters_of(policy)
    assert (hashed is None) == (make is onnx_file)
    assert torch.equal(policy.act(obs), before)


def test_what_nobody_can_look_into_has_none() -> None:
    assert parameters_of(as_policy(lambda obs: obs[..., :ACTION], ACTION)) is None


def test_a_real_model() -> None:
    model = real("stable_baselines3").PPO("MlpPolicy", "Pendulum-v1", device="cpu")
    assert parameters_of(as_policy(SimpleNamespace(policy=model.policy, predict=model.predict), 1)) == parameter_hash(
        model.policy
    )


TRAINING: dict[str, Callable[[], nn.Module]] = {
    "Dropout": lambda: nn.Dropout(0.5),
    "BatchNorm1d": lambda: nn.BatchNorm1d(ACTION),
    "LSTM": lambda: nn.LSTM(ACTION, ACTION, num_layers=2, dropout=0.1),
    "MultiheadAttention": lambda: nn.MultiheadAttention(ACTION, 1, dropout=0.1),
}


@pytest.mark.parametrize("adapter", ["a network", "its method", "its act", "act and context", "lerobot"])
@pytest.mark.parametrize("part", sorted(TRAINING))
def test_training_mode_is_refused_before_anything_is_asked(part: str, adapter: str) -> None:
    kind, adapted = ADAPTERS[adapter]
    net = kind(TRAINING[part]())
    before = parameter_hash(net)
    with pytest.raises(UserError, match=rf"its {part} \(parts\.0\) would .*call \.eval\(\)"):
        adapted(net)
    assert parameter_hash(net) == before
    adapted(net.eval())


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_statistics_of_a_batch_normalisation_that_are_no_numbers(name: str) -> None:
    norm = nn.BatchNorm1d(ACTION)
    norm.get_buffer(name)[0] = float("inf")
    with pytest.raises(UserError, match=rf"{name} of the policy is not finite"):
        as_policy(Net(norm).eval(), ACTION)


def test_training_mode_without_consequences_is_accepted() -> None:
    net = Net(nn.Dropout(0.0), nn.BatchNorm1d(ACTION, track_running_stats=False).eval(), nn.LayerNorm(ACTION))
    as_policy(net, ACTION)
