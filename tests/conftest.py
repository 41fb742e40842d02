"""What every test shares: one thread, a fixed seed, a process as it was before, small policies and settings."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from policy_decorator import api, machine
from policy_decorator.config import RefineConfig
from policy_decorator.errors import MissingExtra
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.transport import needs_pot
from policy_decorator.train import TrainConfig

torch.set_num_threads(1)
settings.register_profile(
    "here", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("here")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with machine.as_it_was():
        yield


@pytest.fixture
def pot() -> None:
    """For tests that need POT."""
    try:
        needs_pot()
    except MissingExtra:
        pytest.skip("POT is not installed")


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave no film and no report, which take most of a short one's time and have tests of their own."""
    monkeypatch.setattr(api, "film", lambda *_: None)
    monkeypatch.setattr(api, "write_report", lambda *_: None)


class SteadyController(nn.Module):
    """A deterministic base with parameters, right in a quarter of toy/reach: it steers past the goal."""

    context = 1

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[-2.0, 0, 2, 0], [0, -2, 0, 2]]))
            self.linear.bias.copy_(torch.tensor([0.14, 0.06]))

    def act(self, window: Tensor) -> Tensor:  # without no_grad on purpose: the package must not need it
        return self.linear(window[:, -1]).clamp(-1, 1)[:, None]


class NoisyController(SteadyController):
    """The same with dropout while acting."""

    def act(self, window: Tensor) -> Tensor:
        return nn.functional.dropout(super().act(window), 0.2).clamp(-1, 1)


@pytest.fixture
def steady() -> SteadyController:
    return SteadyController()


@pytest.fixture
def noisy() -> NoisyController:
    return NoisyController()


@pytest.fixture
def small() -> Config:
    """Settings of the method with which a thousand steps take about a second."""
    return Config(
        bound=0.5,
        horizon=100,
        n_step=3,
        nets=NetConfig(width=16, depth=2),
        sac=SACConfig(gamma=0.95, lr=1e-3, batch_size=32),
    )


@pytest.fixture
def make_config(small: Config) -> Callable[..., RefineConfig]:
    """A run of 600 steps in this process; keywords of `TrainConfig` and `RefineConfig` override."""

    def make(task: str = "toy/reach", **changes: Any) -> RefineConfig:
        rhythm = {"total_steps": 600, "warmup_steps": 100, "steps_per_round": 16, "log_every": 100}
        rhythm |= {"eval_every": 300, "save_every": 300}
        rhythm |= {key: changes.pop(key) for key in list(changes) if key in TrainConfig.__dataclass_fields__}
        given = {"envs": 4, "workers": 0, "eval_episodes": 10, "test_episodes": 12, "device": "cpu", "learn": small}
        return RefineConfig(task=task, train=TrainConfig(**rhythm), **given | changes)

    return make
