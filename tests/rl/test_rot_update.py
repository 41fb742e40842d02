"""ROT's loss against closed forms: the Q-filter, the imitation, and what lies behind the trunk."""

from typing import Any

import pytest
import torch
from batches import assert_gradients_are_finite_differences
from torch import Tensor, nn

from policy_decorator.methods.alone import Takeover
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.rot import ROT, ShownWindows, TrunkCritics, WindowActor
from policy_decorator.rl.settings import SACConfig
from policy_decorator.types import Transition


class Shifting(nn.Module):
    """Answers at each of three frames with what it sees there and a learned shift; with actions given, another one."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.1, -0.2]))

    def means(self, window: Tensor, actions: Tensor | None = None) -> Tensor:
        return window[..., :2] + self.shift * (1 if actions is None else 2)

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        return self.means(window)[:, -1:].clamp(-1, 1)


def _shift(actor: WindowActor) -> nn.Parameter:
    return actor.policy.shift


class Linear(nn.Module):
    """Q = weight . action, of two critics that agree where their weights do."""

    def __init__(self, weight: float, other: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight, other]))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.weight[:, None] * action.flatten(1).sum(1)


def _learner(
    slope: float = 1.0, shown: int = 5, other: float | None = None, cfg: SACConfig | None = None, **options: Any
) -> ROT:
    actor, critics = WindowActor(Shifting(), 4, (1, 2), 0.1), Linear(slope, slope if other is None else other)
    windows = ShownWindows(torch.rand(shown, 3, 4), torch.rand(shown, 3, 2))
    given: dict[str, Any] = {"weight": 0.03, "shown_batch": 4000} | options
    return ROT(actor, critics, Takeover(), 2, cfg or SACConfig(temperature=0.5), shown=windows, **given)


def _batch(base: float, n: int = 50) -> Transition:
    ones, obs = torch.ones(n), 0.2 * torch.rand(n, 12)
    actions = torch.full((n, 1, 2), base)
    return Transition(obs, actions, actions, ones, ones, ones, obs, actions)


def test_an_actor_is_a_gaussian_around_its_policys_newest_answer() -> None:
    actor, seen, noise = WindowActor(Shifting(), 4, (1, 2), 0.1), 0.2 * torch.rand(6, 12), torch.randn(6, 2)
    raw, log_density = actor(seen, noise)
    mean = seen[:, 8:10] + torch.tensor([0.1, -0.2])
    torch.testing.assert_close(raw[:, 0], mean + 0.1 * noise)
    torch.testing.assert_close(log_density, torch.distributions.Normal(mean, 0.1).log_prob(raw[:, 0]).sum(-1))
    torch.testing.assert_close(actor.mode(seen)[:, 0], mean)
    for frame, disturbed, slope in ((0.85, 3.0, 6), (3.0, 0.0, 0)):  # noise beyond the limits, and the answer itself
        far, _ = actor(torch.full_like(seen, frame), torch.full_like(noise, disturbed))
        assert (far <= 1).all()
        (grad,) = torch.autograd.grad(far.sum(), [_shift(actor)])
        assert grad[0] == slope  # as if nothing had been clipped; nothing is driven further out
    assert isinstance(actor.merged(), Shifting)


def test_all_frames_of_a_window_are_imitated() -> None:
    actor, window, actions = WindowActor(Shifting(), 4, (1, 2), 0.3), torch.rand(6, 3, 4), torch.rand(6, 3, 2)
    mean = window[..., :2] + 2 * torch.tensor([0.1, -0.2])
    wanted = torch.distributions.Normal(mean, 0.3).log_prob(actions).sum(-1).mean(-1)
    torch.testing.assert_close(actor.log_density(window, actions), wanted)
    with torch.no_grad():
        actor.log_std.add_(1.0)  # exploration is another matter
    torch.testing.assert_close(actor.log_density(window, actions), wanted)


@pytest.mark.parametrize(("base", "share"), [(1.0, 1.0), (-1.0, 0.0)])
def test_it_imitates_exactly_where_the_base_does_better(base: float, share: float) -> None:
    """The critics like large actions; the base's are larger, or smaller, than all of its own."""
    learner = _learner()
    torch.manual_seed(0)
    loss, log_prob = learner.actor_loss(_batch(base))
    assert learner.imitating == share
    torch.manual_seed(0)
    raw, again = learner.actor(_batch(base).obs)
    rows = torch.randint(5, (4000,))
    torch.testing.assert_close(log_prob, again)
    learned = (0.5 * again - raw.flatten(1).sum(1)).mean()
    imitated = -0.03 * learner.actor.log_density(*(x[rows] for x in learner.shown)).mean()
    torch.testing.assert_close(loss, imitated if share else learned, rtol=1e-4, atol=1e-5)


def test_between_the_two_it_is_the_share_of_the_batch() -> None:
    learner = _learner()
    b = _batch(1.0)
    lower = torch.arange(50) < 20
    b = b._replace(base=torch.where(lower[:, None, None], -b.base, b.base))
    torch.manual_seed(0)
    loss, _ = learner.actor_loss(b)
    torch.manual_seed(0)
    raw, log_prob = learner.actor(b.obs)
    rows = torch.randint(5, (4000,))
    learned = (0.5 * log_prob - raw.flatten(1).sum(1)).mean()
    imitated = -0.03 * learner.actor.log_density(*(x[rows] for x in learner.shown)).mean()
    assert learner.imitating.item() == pytest.approx(0.6)
    torch.testing.assert_close(loss, 0.4 * learned + 0.6 * imitated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("base", "share"), [(0.0, 1.0), (1.0, 0.0)])
def test_of_two_critics_the_more_doubtful_is_believed(base: float, share: float) -> None:
    """Q is plus and minus the sum of an action: the least of both is 0 at best, in the middle, where `base` may be."""
    learner = _learner(other=-1.0)
    learner.actor_loss(_batch(base))
    assert learner.imitating == share


def test_gradients_are_those_of_finite_differences() -> None:
    """Of both parts together, where two critics disagree; no noise is clipped."""
    learner = _learner(2.0, other=1.0, cfg=SACConfig(temperature=0.5, residual_penalty=0.3), weight=0.4, shown_batch=8)
    learner.actor.double()
    lower = torch.arange(50) < 20
    b = _batch(1.0)._replace(base=torch.where(lower, -1.0, 1.0)[:, None, None].expand(50, 1, 2))

    def loss() -> Tensor:
        torch.manual_seed(3)
        return learner.actor_loss(Transition(*(x.double() for x in b)))[0]

    assert assert_gradients_are_finite_differences(loss, learner.actor.parameters(), every=1) == 4
    assert learner.imitating.item() == pytest.approx(0.6)
    torch.manual_seed(3)
    assert learner.actor(b.obs.double())[0].abs().max() < 1


def test_updates_move_it_toward_what_was_shown_where_the_base_is_better() -> None:
    learner = _learner(slope=1.0)
    learner.actor_opt.param_groups[0]["lr"] = 0.01
    window = torch.zeros(5, 3, 4)
    learner.shown = ShownWindows(window, torch.full((5, 3, 2), -0.5))
    metrics = [learner.step(_batch(1.0), True) for _ in range(150)]
    shift = _shift(learner.actor)
    torch.testing.assert_close(2 * shift.detach(), torch.tensor([-0.5, -0.5]), atol=0.1, rtol=0)
    assert metrics[-1]["rot/imitating"] == 1


def test_critics_share_a_trunk_that_sees_the_newest_frame() -> None:
    critics = TrunkCritics(4, 2, 7, NetConfig(width=8, depth=2, head_gain=1.0))
    windows, action = torch.randn(5, 12), torch.randn(5, 1, 2)
    torch.testing.assert_close(critics.look(windows), critics.look(windows[:, 8:]))
    torch.testing.assert_close(critics(windows, action), critics(windows[:, 8:], action))
    assert critics(windows, action).shape == (2, 5)
    linear = critics.trunk[0]
    assert isinstance(linear, nn.Linear)
    x = linear(windows[:, 8:])
    wanted = ((x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()).tanh()
    torch.testing.assert_close(critics.look(windows), wanted)
