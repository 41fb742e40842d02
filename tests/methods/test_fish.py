"""FISH: whose reward is optimal transport to the demonstrations, and what is learned from it."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tuned import reaching

from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy
from policy_decorator.decorator import ProgressiveExploration, Residual
from policy_decorator.envs.toy import Reach
from policy_decorator.errors import MissingExtra, UserError
from policy_decorator.methods import METHODS, Problem, Run, settings_of
from policy_decorator.methods.fish import Config
from policy_decorator.refine import refine
from policy_decorator.rl import transport
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.episodes import WholeEpisodes
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.transport import TransportReward, episodes_of, of_windows, transport_rewards

pytestmark = pytest.mark.usefixtures("pot")


def _shown(episodes: int = 3, length: int = 10) -> Demonstrated:
    """Of which the first fails."""
    n = episodes * length
    success = (torch.arange(n) % length == length - 1) & (torch.arange(n) >= length)
    lengths = torch.full((episodes,), length)
    return Demonstrated(torch.randn(n, 4), torch.rand(n, 1, 2), torch.rand(n, 1, 2), success, lengths)


def _build(small: Any, base: Any, shown: Demonstrated | None = None, **changes: Any) -> Run:
    torch.manual_seed(7)
    statistics = changes.pop("obs_statistics", None)
    cfg = replace(settings_of("fish", small), **changes)
    problem = Problem(
        Reach(4), base, 4, (1, 2), 1000, 0, demonstrated=shown or _shown(), obs_statistics=statistics
    )  # fmt: skip
    return METHODS["fish"].build(cfg, problem)


def _collect(run: Run, decisions: int) -> list[Any]:
    out = []
    for _ in range(decisions):
        t, step = run.collector.decide(run.explorer)
        if (kept := run.intake.push(t, step.done)) is not None:
            run.replay.add(kept)
            out.append(kept)
    return out


def test_every_episode_is_rewarded_as_a_whole(small: Any, steady: nn.Module) -> None:
    run = _build(small, steady, n_step=1)
    first = _collect(run, 30)[0]
    frames = torch.cat([first.obs[:1], first.next_obs])[: int(first.decisions.sum()) + 1]
    ends = (first.next_obs[:-1] != first.obs[1:]).any(dim=1).nonzero()[:, 0]
    n = int(ends[0]) + 1 if len(ends) else len(first.reward)  # several may have ended together
    frames = torch.cat([first.obs[:1], first.next_obs[:n]])
    reward = cast(TransportReward, run.reward)
    torch.testing.assert_close(first.reward[:n], reward(frames)[1:])
    assert (first.reward <= 0).all()


def test_success_is_not_rewarded(small: Any, steady: nn.Module) -> None:
    rewards = []
    for shift in (-1.0, 5.0):
        run = _build(small, steady, reward_shift=shift, demo_share=0.5)
        torch.manual_seed(1)
        _collect(run, 40)
        torch.manual_seed(2)
        batch = run.data.sample(64)
        rewards.append(batch.reward)
        assert (batch.reward[32:] == 0).all()  # a demonstration is carried over to itself for nothing
        assert (batch.reward[:32] != 0).all()
    torch.testing.assert_close(*rewards, rtol=0, atol=0)


def test_a_share_of_demonstrations_has_the_corrections_to_them(small: Any, steady: nn.Module) -> None:
    shown = _shown()
    run = _build(small, steady, shown, demo_share=1.0, n_step=1, bound=0.25)
    _collect(run, 30)
    batch = run.data.sample(50)
    executed = run.collector.composition.execute(batch.base, batch.raw)
    known = {tuple(row) for row in shown.action[:, 0].numpy().round(4).tolist()}
    assert {tuple(row) for row in executed[:, 0].numpy().round(4).tolist()} <= known


def test_the_offset_is_a_bounded_residual_from_the_first_decision_on(small: Any, steady: nn.Module) -> None:
    run = _build(small, steady, bound=0.3)
    assert run.collector.composition == Residual(0.3, "obs+base", "concat")
    assert run.collector.gate == ProgressiveExploration(0, 0)
    assert isinstance(run.intake, WholeEpisodes)
    assert (Config().actor_sees, Config().critic_sees, Config().bound) == ("obs+base", "concat", 0.2)
    assert run.intake.n == small.n_step


class Featured:
    """A base that says what it makes of windows of three frames."""

    context = 3

    def features(self, window: Tensor) -> Tensor:
        return window[:, 0]  # the oldest

    def act(self, window: Tensor) -> Tensor:
        return window[:, -1:, :2]


def test_distances_are_measured_where_it_is_asked_for(small: Any, steady: nn.Module) -> None:
    frames, statistics = torch.randn(6, 4), (torch.arange(4.0), torch.full((4,), 2.0))
    oldest = frames[[0, 0, 0, 1, 2, 3]]
    standardized = (frames - statistics[0]) / 2.001

    def features(base: Any, distances: Any) -> Tensor:
        run = _build(small, base, distances=distances, obs_statistics=statistics)
        return cast(TransportReward, run.reward).features(frames)

    for base, distances, wanted in (
        (Featured(), "auto", oldest),
        (Featured(), "features", oldest),
        (Featured(), "obs", frames),
        (Featured(), "standardized", standardized),
        (steady, "auto", standardized),
        (steady, "obs", frames),
    ):
        torch.testing.assert_close(features(base, distances), wanted)
    with pytest.raises(UserError, match="no features"):
        features(steady, "features")
    torch.testing.assert_close(of_windows(lambda w: w.flatten(1), 2)(frames)[0], frames[0].repeat(2))


@pytest.mark.parametrize("network", ["unet", "mlp"])
def test_a_diffusion_policys_film_layer_is_where_it_has_one(network: Any, small: Any) -> None:
    """What has no such layer is known before the first episode."""
    sizes: dict[str, Any] = {"context": 1, "horizon": 2, "chunk": 1, "widths": (8,), "step_size": 4, "mlp_width": 8}
    base = DiffusionPolicy(DiffusionConfig(network=network, **sizes), 4, 2)
    frames, statistics = torch.randn(6, 4), (torch.zeros(4), torch.ones(4))

    def look(distances: Any) -> Tensor:
        run = _build(small, base, distances=distances, obs_statistics=statistics)
        return cast(TransportReward, run.reward).features(frames)

    film = base.features(frames[:, None]) if network == "unet" else frames / 1.001
    torch.testing.assert_close(look("auto"), film)
    if network == "unet":
        torch.testing.assert_close(look("features"), film)
    else:
        with pytest.raises(UserError, match="--network unet"):
            look("features")


def test_it_is_compared_with_the_first_that_succeed(small: Any, steady: nn.Module) -> None:
    shown = _shown()
    run = _build(small, steady, shown, compared=1)
    (only,) = cast(TransportReward, run.reward).demonstrations
    torch.testing.assert_close(only, shown.obs[10:20])
    failures = replace(shown, success=torch.zeros_like(shown.success))
    assert len(episodes_of(failures, 2)) == 2


def test_a_reward_goes_on_at_its_scale() -> None:
    one = TransportReward([torch.randn(9, 4)], lambda obs: obs)
    one(torch.randn(7, 4))
    other = TransportReward(one.demonstrations, one.features)
    other.restore(one.state())
    episode = torch.randn(5, 4)
    torch.testing.assert_close(other(episode), one(episode), rtol=0, atol=0)
    torch.testing.assert_close(one(episode), (one.scale or 0) * transport_rewards(episode, one.demonstrations[0]))


def test_what_it_cannot(small: Any, steady: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(Reach(4), steady, 4, (1, 2), 100, 0)
    settings = settings_of("fish", small)
    with pytest.raises(UserError, match="fish learns from demonstrations"):
        METHODS["fish"].build(settings, problem)
    with pytest.raises(UserError, match="fish has no eyes"):
        METHODS["fish"].build(settings, replace(problem, shapes={"rgb": (3, 8, 8)}))
    with pytest.raises(UserError, match="compared must be at least 1"):
        Config(compared=0)
    with pytest.raises(UserError, match="fish learns with sac or td3"):
        Config(learner="ppo")
    with pytest.raises(UserError, match="leave out success_ends_value"):
        Config(success_ends_value=True)
    monkeypatch.setitem(__import__("sys").modules, "ot", None)
    with pytest.raises(MissingExtra, match="transport"):
        METHODS["fish"].build(settings, replace(problem, demonstrated=_shown()))


class Knowing(nn.Module):
    """Steers past the goal, and knows that what matters is where that lies from here."""

    context = 1

    def __init__(self, steady: nn.Module) -> None:
        super().__init__()
        self.steady = steady

    def features(self, window: Tensor) -> Tensor:
        position, goal = window[:, -1].chunk(2, dim=-1)
        return torch.cat([goal - position, torch.full_like(position, 0.1)], dim=-1)

    def act(self, window: Tensor) -> Tensor:
        return cast(Any, self.steady).act(window)


@pytest.mark.slow
@pytest.mark.parametrize("rewarded", [True, False])
def test_it_learns_to_reach_without_being_told_of_success(
    rewarded: bool, make_config: Any, steady: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes do not end at success either; where the reward is taken away nothing is learned."""
    returns: list[float] = []
    score = transport.TransportReward.__call__

    def counted(self: TransportReward, episode: Tensor) -> Tensor:
        rewards = score(self, episode)
        returns.append(float(rewards.sum()))
        return rewards * rewarded

    monkeypatch.setattr(transport.TransportReward, "__call__", counted)
    nets = NetConfig(width=32, depth=2, log_std_min=-5.0)
    sac = SACConfig(gamma=0.8, lr=1e-3, batch_size=64, temperature=0.02, entropy_in_backup=False)
    learn = Config(bound=0.2, critic_sees="residual", compared=3, nets=nets, sac=sac)
    config = make_config(total_steps=3_000, eval_every=1_500, warmup_steps=600, test_episodes=40, save_every=3_000)
    config = replace(config, method="fish", learn=learn, max_steps=15, ends_at_success=False, keep="last")
    config = replace(config, train=replace(config.train, updates_per_step=1.0))
    refined, _ = refine(config, cast(Any, Knowing(steady)), demos=reaching(20, 15))
    assert refined.summary["base_success"] < 0.5
    assert (refined.summary["refined_success"] > 0.7) == rewarded
    if rewarded:  # the reward rises toward the demonstrations
        assert np.mean(returns[-40:]) > 0.75 * np.mean(returns[:40])
