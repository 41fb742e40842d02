"""What the monitor reads off transitions, by hand."""

import pytest
import torch
from torch import Tensor

from policy_decorator.methods.alone import Takeover
from policy_decorator.rl.monitor import Monitor
from policy_decorator.types import Step, Transition


def _observe(monitor: Monitor, raw: Tensor, done: list[bool], success: list[bool]) -> None:
    n = len(raw)
    zero, obs = torch.zeros(n), torch.zeros(n, 3)
    t = Transition(obs, raw, torch.zeros_like(raw), zero, zero, zero, obs, torch.zeros_like(raw))
    s, d = torch.tensor(success), torch.tensor(done)
    monitor.observe(t, Step(obs[:, None], obs[:, None], s, s, d, torch.ones(n, dtype=torch.long), torch.arange(n)))


def test_readings_by_hand() -> None:
    monitor = Monitor()
    assert monitor.read() == {}
    monitor.recent.extend([True, False] * 4)  # with the two below, the fewest that make a rate
    raw = torch.tensor([[[0.5, -0.5]], [[0.0, 0.0]], [[1.0, 0.0]]])  # the second row's base acted alone
    _observe(monitor, raw, [True, False, True], [True, False, False])
    _observe(monitor, torch.tensor([[[-0.96, 0.97]], [[0.0, 0.0]], [[0.0, 0.0]]]), [False] * 3, [False] * 3)
    assert monitor.read() == pytest.approx(
        {
            "train/success": 0.5,
            "train/residual_share": 3 / 6,
            "train/residual_norm": (0.5 + 0.5 + 0.965) / 3,
            "train/saturation": (0.0 + 0.5 + 1.0) / 3,
        }
    )
    assert monitor.read() == {"train/success": 0.5}  # sizes are since the last reading, successes the last hundred


def test_where_the_base_acts_for_an_actor_the_actor_did_not_speak() -> None:
    """Of methods whose actor acts alone, the base's action stands for its own (`Takeover`)."""
    monitor, zero, obs = Monitor(Takeover().idle), torch.zeros(2), torch.zeros(2, 3)
    raw, base = torch.tensor([[[0.99, -0.5]], [[0.2, 0.4]]]), torch.tensor([[[0.99, -0.5]], [[0.2, 0.5]]])
    t = Transition(obs, raw, base, zero, zero, zero, obs, base)
    no = torch.zeros(2, dtype=torch.bool)
    monitor.observe(t, Step(obs[:, None], obs[:, None], no, no, no, torch.ones(2, dtype=torch.long), torch.arange(2)))
    seen = {"train/residual_share": 0.5, "train/residual_norm": 0.3, "train/saturation": 0.0}
    assert monitor.read() == pytest.approx(seen)


def test_a_handful_of_episodes_makes_no_rate() -> None:
    monitor = Monitor()
    _observe(monitor, torch.zeros(9, 1, 1), [True] * 9, [True] * 9)
    assert "train/success" not in monitor.read()
    _observe(monitor, torch.zeros(1, 1, 1), [True], [False])
    assert monitor.read()["train/success"] == pytest.approx(0.9)


def test_no_size_is_reported_where_the_residual_never_spoke() -> None:
    monitor = Monitor()
    _observe(monitor, torch.zeros(2, 1, 2), [False, False], [False, False])
    assert monitor.read() == {"train/residual_share": 0.0}


def test_an_episode_has_succeeded_if_it_ever_did() -> None:
    monitor = Monitor()
    still = torch.zeros(2, 1, 1)
    for _ in range(5):
        _observe(monitor, still, [False, False], [True, False])
        _observe(monitor, still, [False, True], [False, False])  # the second row begins a new episode
        _observe(monitor, still, [True, False], [False, True])
        other = Monitor()
        other.restore(monitor.state())
        monitor = other
        _observe(monitor, still, [True, True], [False, False])
    assert list(monitor.recent) == [False, True, False, True] * 5


def test_success_is_over_the_last_hundred_episodes() -> None:
    monitor = Monitor()
    for success in (False, True):
        for _ in range(30):
            _observe(monitor, torch.zeros(2, 1, 1), [True, True], [success, success])
    assert monitor.read()["train/success"] == pytest.approx(0.6)


def test_a_restored_monitor_reads_the_same() -> None:
    one, two = Monitor(), Monitor()
    for _ in range(80):
        _observe(one, torch.rand(2, 1, 2), [True, True], [bool(torch.rand(1) < 0.4), False])
    one.learning |= {"loss/actor": torch.tensor(0.5)}
    state = one.state()
    one.learning |= {"loss/actor": torch.tensor(9.0)}  # what was captured stays as it was
    two.restore(state)
    assert two.learning == {"loss/actor": torch.tensor(0.5)}
    for monitor in (one, two):
        _observe(monitor, torch.full((2, 1, 2), 0.3), [True, False], [True, False])
    assert one.read() == two.read()
