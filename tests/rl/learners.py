"""Small learners of every kind, their batches, and what is compared of them."""

import copy
from typing import Any

import torch
from torch import Tensor

from policy_decorator.decorator import Residual
from policy_decorator.encoders import Encoder, EncoderConfig
from policy_decorator.envs.images import together
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.rl.selection import Selection
from policy_decorator.rl.sight import SeeingSAC
from policy_decorator.rl.td3 import TD3
from policy_decorator.types import Transition

DO, DA, B = 5, 2, 16
KINDS = ("sac", "ensemble", "selection", "td3", "pictures")
SHAPES = {"rgb": (3, 8, 8), "depth": (1, 8, 8)}


def new_learner(kind: str = "sac", actor_every: int = 1, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    nets = NetConfig(width=16, depth=2, critics=4 if kind == "ensemble" else 2)
    size = DO + 6 if kind == "pictures" else DO
    actor, critics, residual = TanhGaussian(size, (1, DA), nets), Critics(size, DA, nets), Residual(0.3)
    subset = 2 if kind == "ensemble" else None
    cfg = SACConfig(actor_every=actor_every, lr=1e-3, temperature=0.2, critic_subset=subset)
    if kind == "td3":
        return TD3(actor.to(device), critics.to(device), residual, cfg)
    if kind == "pictures":
        encoder = Encoder(EncoderConfig((4,), 4, features=6, shift=1), SHAPES, DO)
        return SeeingSAC(actor.to(device), critics.to(device), residual, DA, cfg, encoder=encoder.to(device))
    selection = Selection(residual) if kind == "selection" else None
    return SAC(actor.to(device), critics.to(device), residual, DA, cfg, selection)


def new_batch(seed: int, n: int = B, device: str = "cpu", kind: str = "sac") -> Transition:
    g = torch.Generator().manual_seed(seed)
    shapes = ((n, DO), (n, 1, DA), (n, 1, DA), (n,), (n,), (n,), (n, DO), (n, 1, DA))
    b = Transition(*(torch.rand(shape, generator=g).to(device) for shape in shapes))
    b = b._replace(terminated=(b.terminated > 0.8).float(), decisions=torch.ones_like(b.decisions))
    return b._replace(obs=_frames(b.obs, g), next_obs=_frames(b.next_obs, g)) if kind == "pictures" else b


def _frames(state: Tensor, g: torch.Generator) -> Tensor:
    """With random pictures, as replay gives them out."""
    n, device = len(state), state.device
    rgb = torch.randint(256, (n, *SHAPES["rgb"]), generator=g, dtype=torch.uint8).to(device)
    depth = torch.randint(3000, (n, *SHAPES["depth"]), generator=g, dtype=torch.int16).to(device)
    return together({"state": state, "rgb": rgb, "depth": depth, "frame": torch.arange(n, device=device)}, ndim=1)


def state_of(learner: Any) -> dict[str, Any]:
    """As a snapshot keeps it."""
    parts = {name: copy.deepcopy(x.state_dict()) for name, x in vars(learner).items() if hasattr(x, "state_dict")}
    tensors = {name: x.detach().clone() for name, x in vars(learner).items() if isinstance(x, Tensor)}
    return parts | tensors | {"updates": learner.updates}


def restore_to(learner: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        x = getattr(learner, name)
        if hasattr(x, "state_dict"):
            x.load_state_dict(copy.deepcopy(value))
        elif isinstance(x, Tensor):
            x.detach().copy_(value)
    learner.updates = state["updates"]


def assert_same(one: Any, two: Any, close: bool = False) -> None:
    if isinstance(one, Tensor):
        tolerance = {"rtol": 1e-3, "atol": 1e-4} if close else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(one, two, **tolerance)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key], close)
    elif isinstance(one, list | tuple):
        for x, y in zip(one, two, strict=True):
            assert_same(x, y, close)
    else:
        assert one == two
