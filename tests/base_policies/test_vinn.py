"""VINN: its neighbours by scikit-learn, its database through training, saving and loading, and FISH's queue by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from policy_decorator.base_policies import build
from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.base_policies.checkpoint import load_policy, parameter_hash, save_policy
from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy
from policy_decorator.base_policies.imitate import ImitateConfig, Imitator, imitate
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.base_policies.unet import UNet1D
from policy_decorator.base_policies.vinn import VINN, QueuedVINN, VINNConfig, build_vinn
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.errors import UserError

OBS, ACTION = 4, 2
BET = BeTConfig(context=3, clusters=3, layers=1, heads=2, width=8, gpt_output=6)
TRAINING = ImitateConfig(steps=20, batch_size=32, lr=1e-3, eval_every=10)


def _demos() -> Demonstrations:
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(60, OBS)).astype(np.float32), rng.uniform(-1, 1, (60, ACTION)).astype(np.float32)
    return Demonstrations(
        "toy/reach", *arrays, np.ones(60, dtype=bool), np.array([25, 20, 15]), np.arange(3), "a test", {}
    )


def _fitted(**settings: object) -> VINN:
    torch.manual_seed(0)
    policy = build_vinn(VINNConfig(**{"bet": BET, **settings}), OBS, ACTION)  # pyright: ignore[reportArgumentType]
    policy.fit_statistics(_demos())
    return policy


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("representation", ["obs", "standardized"])
def test_the_average_of_the_nearest_frames_weighted_by_their_distance(representation: str, k: int) -> None:
    demos, policy = _demos(), _fitted(representation=representation, neighbours=k)
    frames = demos.observations.astype(float)
    if representation == "standardized":
        frames = (frames - frames.mean(0)) / frames.std(0)
    queries = np.random.default_rng(1).normal(size=(30, OBS)).astype(np.float32)
    seen = queries
    if representation == "standardized":
        seen = (queries - demos.observations.mean(0)) / demos.observations.std(0)
    distance, which = NearestNeighbors(n_neighbors=k).fit(frames).kneighbors(seen)
    weights = np.exp(-distance) / np.exp(-distance).sum(axis=1, keepdims=True)
    expected = (weights[:, :, None] * demos.actions[which]).sum(axis=1)
    answer = policy.act(torch.from_numpy(queries)[:, None])
    np.testing.assert_allclose(answer[:, 0].numpy(), expected, atol=1e-5)


def test_a_demonstrated_frame_is_its_own_neighbour() -> None:
    demos, policy = _demos(), _fitted(neighbours=1)
    start = 25  # of the second episode: its windows begin with its first frame repeated
    rows = torch.tensor([[start, start, start], [start, start, start + 1], [start + 4, start + 5, start + 6]])
    windows = torch.from_numpy(demos.observations)[rows]
    np.testing.assert_array_equal(policy.act(windows)[:, 0], demos.actions[[start, start + 1, start + 6]])


def test_features_are_those_of_the_newest_frame_without_dropout() -> None:
    policy = _fitted()
    encoder = policy.encoder
    assert isinstance(encoder, BehaviorTransformer)
    window = torch.randn(5, 3, OBS)
    torch.testing.assert_close(policy.features(window), encoder._features(window, 0.0)[:, -1])
    assert torch.equal(policy.features(window), policy.features(window))


def test_the_database_follows_the_parameters_and_is_saved_with_them(tmp_path: Path) -> None:
    policy, demos = build_vinn(VINNConfig(bet=BET), OBS, ACTION), _demos()
    found = []

    def evaluate(policy: Imitator, step: int) -> float:
        assert isinstance(policy, VINN)
        policy.act(torch.zeros(1, 3, OBS))
        found.append(policy.keys.clone())
        return 1.0 if step == 10 else 0.0

    result = imitate(policy, demos, TRAINING, evaluate=evaluate)
    assert result.best_step == 10
    assert not torch.equal(found[0], found[1])
    assert torch.equal(policy.keys, found[0])  # of the parameters that are kept
    save_policy(policy, tmp_path, details={})
    loaded = load_policy(tmp_path)
    window = torch.randn(7, 3, OBS)
    assert torch.equal(loaded.act(window), policy.act(window))
    assert loaded.cfg == policy.cfg


def test_without_evaluations_the_database_is_of_the_last_parameters(tmp_path: Path) -> None:
    policy = build_vinn(VINNConfig(bet=BET), OBS, ACTION)
    imitate(policy, _demos(), TRAINING)
    before = parameter_hash(policy)
    save_policy(policy, tmp_path, details={})
    policy.act(torch.randn(3, 3, OBS))
    assert parameter_hash(load_policy(tmp_path)) == parameter_hash(policy) == before


def test_the_features_of_a_trained_policy_can_be_taken(tmp_path: Path) -> None:
    trained = build("bet", OBS, ACTION, BET)
    imitate(trained, _demos(), TRAINING)
    save_policy(trained, tmp_path / "bet", details={})
    policy = build_vinn(VINNConfig(encoder=str(tmp_path / "bet")), OBS, ACTION)
    assert policy.context == BET.context
    result = imitate(policy, _demos(), replace(TRAINING, steps=1000, lr=1.0))
    assert len(result.history) == 1  # nothing to train
    assert isinstance(trained, BehaviorTransformer)
    assert parameter_hash(policy.encoder) == parameter_hash(trained)
    save_policy(policy, tmp_path / "vinn", details={})
    window = torch.randn(3, 3, OBS)
    assert torch.equal(load_policy(tmp_path / "vinn").act(window), policy.act(window))
    save_policy(build("mlp", OBS, ACTION, MLPConfig(width=4)), tmp_path / "mlp", details={})
    with pytest.raises(UserError, match="BehaviorTransformer"):
        build_vinn(VINNConfig(encoder=str(tmp_path / "mlp")), OBS, ACTION)
    with pytest.raises(UserError, match="another task"):
        build_vinn(VINNConfig(encoder=str(tmp_path / "bet")), OBS + 1, ACTION)


class Chooser:
    """FISH's choice for one episode, in plain Python."""

    def __init__(self, length: int, tolerance: int) -> None:
        self.length, self.tolerance = length, tolerance
        self.exempted: list[int] = []
        self.used: dict[int, int] = {}

    def __call__(self, neighbours: list[int]) -> int:
        for frame in neighbours:
            if frame not in self.exempted:
                self.used[frame] = self.used.get(frame, 0) + 1
                if self.used[frame] > self.tolerance:
                    self.exempted = [*self.exempted, frame][-self.length :]
                return frame
        return neighbours[-1]


@pytest.mark.parametrize(("length", "tolerance", "k"), [(3, 1, 4), (3, 0, 4), (2, 2, 2)])
def test_a_frame_that_was_used_makes_way_for_a_while(length: int, tolerance: int, k: int) -> None:
    policy = _fitted(representation="obs", neighbours=k, queue=length, tolerance=tolerance)
    assert isinstance(policy, QueuedVINN)
    rng, demos = np.random.default_rng(2), _demos()
    opened = policy.session()
    chosen = {row: Chooser(length, tolerance) for row in range(3)}
    finder = NearestNeighbors(n_neighbors=k).fit(demos.observations)
    spots = rng.normal(size=(2, OBS)) * 0.3  # few places, so that frames are used again
    seen = set[int]()
    for step in range(40):
        rows = torch.tensor([2, 0] if step % 5 == 0 else [0, 1, 2])
        if step in (11, 25):
            opened.reset(torch.tensor([1]))
            chosen[1] = Chooser(length, tolerance)
        frames = spots[rng.integers(2, size=len(rows))].astype(np.float32)
        answer = opened.act(torch.from_numpy(frames)[:, None], rows)[:, 0]
        for row, frame, action in zip(rows.tolist(), frames, answer, strict=True):
            expected = chosen[row](finder.kneighbors(frame[None])[1][0].tolist())
            np.testing.assert_array_equal(action, demos.actions[expected])
            seen.add(expected)
    assert len(seen) > 2


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(UserError, match="no demonstrations"):
        build_vinn(VINNConfig(bet=BET), OBS, ACTION).act(torch.zeros(1, 3, OBS))
    with pytest.raises(UserError, match="60 demonstrated frames are fewer"):
        _fitted(neighbours=61)
    for wrong in ({"neighbours": 0}, {"representation": "x"}, {"representation": "obs", "encoder": "somewhere"}):
        with pytest.raises(UserError):
            VINNConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_features_of_a_diffusion_policy_are_what_modulates_its_u_net(tmp_path: Path) -> None:
    small = DiffusionConfig(context=2, horizon=4, chunk=2, widths=(8, 16), step_size=8)
    trained = build("diffusion", OBS, ACTION, small)
    imitate(trained, _demos(), replace(TRAINING, steps=5))
    save_policy(trained, tmp_path / "diffusion", details={})
    policy = build_vinn(VINNConfig(representation="film", encoder=str(tmp_path / "diffusion")), OBS, ACTION)
    imitate(policy, _demos(), TRAINING)  # there is nothing to train
    assert isinstance(trained, DiffusionPolicy)
    assert isinstance(trained.unet, UNet1D)
    window, block = torch.randn(5, 2, OBS), cast(Any, trained.unet.down[0]).first
    heard: list[torch.Tensor] = []
    block.film.register_forward_hook(lambda *args: heard.append(args[-1]))
    trained.unet(torch.randn(5, 4, ACTION), torch.zeros(5, dtype=torch.long), trained.condition(window))
    torch.testing.assert_close(policy.features(window), heard[0])
    assert policy.context == 2
    assert policy.keys.shape == (60, 16)
    save_policy(policy, tmp_path / "vinn", details={})
    loaded = load_policy(tmp_path / "vinn")  # without the folder of the Diffusion Policy
    assert torch.equal(loaded.act(window), policy.act(window))
    with pytest.raises(UserError, match="--encoder"):
        VINNConfig(representation="film")
    save_policy(build("diffusion", OBS, ACTION, replace(small, network="mlp")), tmp_path / "mlp", details={})
    with pytest.raises(UserError, match="--network unet"):
        build_vinn(VINNConfig(representation="film", encoder=str(tmp_path / "mlp")), OBS, ACTION)
