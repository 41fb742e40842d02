"""Base policies that can be trained here: one file each and one line in `POLICIES`.

Every one is an `imitate.Imitator`: `context`, `chunk`, `act`, `loss`, `fit_statistics`, `parameter_groups`,
and the attributes `cfg`, `obs_size`, `action_size`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy
from policy_decorator.base_policies.imitate import ImitateConfig, Imitator
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.base_policies.rnn import RecurrentPolicy, RNNConfig
from policy_decorator.base_policies.seeing import CNNConfig, SeeingPolicy
from policy_decorator.base_policies.seeing_vinn import SeeingVINN
from policy_decorator.base_policies.vinn import VINNConfig, build_vinn
from policy_decorator.encoders import EncoderConfig, Shapes
from policy_decorator.errors import UserError, lookup


@dataclass(frozen=True)
class PolicyEntry:
    """A base policy that can be trained from demonstrations."""

    name: str
    summary: str
    """What it is, in a line."""
    config: type[Any]
    """Its config, a frozen dataclass whose defaults are complete."""
    build: Callable[[Any, int, int], Imitator]
    """(cfg, obs_size, action_size) -> an untrained policy."""
    training: ImitateConfig = field(default_factory=ImitateConfig)
    """How it is trained unless one says otherwise."""
    eyes: Literal["may", "must", "cannot"] = "may"
    """Whether it can stand behind an encoder of pictures, or has to."""
    seeing: type[SeeingPolicy] = SeeingPolicy
    """What it is behind one."""


DIFFUSION_TRAINING = ImitateConfig(
    steps=200_000,  # Table 7; the released code: 300,000 to 1,000,000
    batch_size=1024,
    weight_decay=1e-6,
    betas=(0.95, 0.999),
    schedule="cosine",
    warmup_steps=500,
    ema=0.9999,
    eval_every=10_000,
)
"""Of the released code."""

POLICIES: dict[str, PolicyEntry] = {
    "mlp": PolicyEntry("mlp", "Behaviour cloning with a multi-layer perceptron.", MLPConfig, MLPPolicy),
    "bet": PolicyEntry("bet", "Behavior Transformer, a base policy of the paper.", BeTConfig, BehaviorTransformer),
    "diffusion": PolicyEntry(
        "diffusion",
        "Diffusion Policy, a base policy of the paper.",
        DiffusionConfig,
        DiffusionPolicy,
        DIFFUSION_TRAINING,
    ),
    "cnn": PolicyEntry(
        "cnn", "Behaviour cloning from pictures, a base policy of the paper.", CNNConfig, MLPPolicy, eyes="must"
    ),
    "rnn": PolicyEntry(
        "rnn",
        "BC-RNN: an LSTM, whose memory is kept per environment.",
        RNNConfig,
        RecurrentPolicy,
        ImitateConfig(batch_size=100, weight_decay=0.0),  # robomimic's
        eyes="cannot",
    ),
    "vinn": PolicyEntry(
        "vinn", "VINN: the actions of the nearest demonstrated frames.", VINNConfig, build_vinn, seeing=SeeingVINN
    ),
}


def build(
    name: str,
    obs_size: int,
    action_size: int,
    cfg: Any = None,
    *,
    shapes: Shapes | None = None,
    eyes: EncoderConfig | None = None,
) -> Imitator:
    """An untrained policy, initialised from torch's global generator.

    With `shapes`, those of the pictures of a task that shows some, it looks at them through `eyes`; `obs_size` is then
    the size of the state beside them.

    Raises:
        UserError: an unknown name, another policy's config, a policy that cannot do without pictures, or with them.
    """
    entry = lookup("base policy", name, POLICIES)
    cfg = entry.config() if cfg is None else cfg
    if type(cfg) is not entry.config:
        raise UserError(f"The base policy {name!r} needs a {entry.config.__name__}, got a {type(cfg).__name__}.")
    if not shapes:
        if entry.eyes == "must":
            raise UserError(f"{name} looks at pictures, and here are none: take a task that shows some (task:rgb).")
        return entry.build(cfg, obs_size, action_size)
    if entry.eyes == "cannot":
        able = ", ".join(sorted(other.name for other in POLICIES.values() if other.eyes != "cannot"))
        raise UserError(f"{name} cannot look at pictures. Those that can: {able}.")
    return entry.seeing(cfg, obs_size, action_size, entry.build, shapes, eyes or EncoderConfig())
