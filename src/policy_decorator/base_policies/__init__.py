"""Base policies that can be trained here: one file each and one line in `POLICIES`.

Every one is an `imitate.Imitator`: `context`, `chunk`, `act`, `loss`, `fit_statistics`, `parameter_groups`,
and the attributes `cfg`, `obs_size`, `action_size`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.base_policies.imitate import Imitator
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.base_policies.rnn import RecurrentPolicy, RNNConfig
from policy_decorator.base_policies.vinn import VINNConfig, build_vinn
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


POLICIES: dict[str, PolicyEntry] = {
    "mlp": PolicyEntry("mlp", "Behaviour cloning with a multi-layer perceptron.", MLPConfig, MLPPolicy),
    "bet": PolicyEntry("bet", "Behavior Transformer, a base policy of the paper.", BeTConfig, BehaviorTransformer),
    "rnn": PolicyEntry("rnn", "BC-RNN: an LSTM, whose memory is kept per environment.", RNNConfig, RecurrentPolicy),
    "vinn": PolicyEntry("vinn", "VINN: the actions of the nearest demonstrated frames.", VINNConfig, build_vinn),
}


def build(name: str, obs_size: int, action_size: int, cfg: Any = None) -> Imitator:
    """An untrained policy, initialised from torch's global generator.

    Raises:
        UserError: an unknown name, or another policy's config.
    """
    entry = lookup("base policy", name, POLICIES)
    cfg = entry.config() if cfg is None else cfg
    if not isinstance(cfg, entry.config):
        raise UserError(f"The base policy {name!r} needs a {entry.config.__name__}, got a {type(cfg).__name__}.")
    return entry.build(cfg, obs_size, action_size)
