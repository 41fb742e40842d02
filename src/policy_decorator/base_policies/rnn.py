"""BC-RNN: behaviour cloning with an LSTM, which remembers the episode so far, and a mixture of Gaussians.

loss = -mean log sum_m p_m N(a_t; tanh(mean_m), softplus(s_m) + min_std)     over sequences of 10 steps, from zero
act  = a sample, the Gaussians narrowed; the LSTM's state starts at zero every 10 steps of an episode

from Mandlekar et al. 2021 (arXiv 2108.03298); sizes are those of robomimic for observations without pictures. The
paper's App. D.1 names BC-RNN without settings.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from policy_decorator.base_policies.mlp import Standardize
from policy_decorator.errors import UserError
from policy_decorator.memory import Remembering

if TYPE_CHECKING:
    from policy_decorator.demos.dataset import Demonstrations

NARROW = 1e-4  # standard deviation of every Gaussian while acting, with `low_noise`


@dataclass(frozen=True)
class RNNConfig:
    """Behaviour cloning with an LSTM; defaults are robomimic's for demonstrations by people."""

    width: int = 400
    """Units of each LSTM layer (robomimic: 400 without pictures, 1000 with them)."""
    layers: int = 2
    """LSTM layers."""
    sequence: int = 10
    """Steps it is trained on at a time, after which its state begins at zero again while acting."""
    head: Literal["gmm", "mse"] = "gmm"
    """A mixture of Gaussians, or one action and its squared error (robomimic for machine-generated demonstrations)."""
    modes: int = 5
    """Gaussians of "gmm"."""
    min_std: float = 1e-4
    """Smallest standard deviation of theirs."""
    low_noise: bool = True
    """While acting, draw the Gaussian but not what is around its mean (a standard deviation of 1e-4)."""
    standardize_obs: bool = True
    """Standardise each observation feature with the demonstrations' statistics; robomimic takes them raw."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.sequence, self.modes) < 1:
            raise UserError(f"width, layers, sequence and modes of an RNN must be at least 1, got {self}.")
        if self.head not in ("gmm", "mse"):
            raise UserError(f"head must be 'gmm' or 'mse', got {self.head!r}.")
        if self.min_std <= 0:
            raise UserError(f"min_std must be positive, got {self.min_std}.")


class RecurrentPolicy(Remembering, nn.Module):
    """A policy with a memory: what it answers depends on the frames since the last multiple of `sequence` steps."""

    def __init__(self, cfg: RNNConfig, obs_size: int, action_size: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.obs_size = obs_size
        self.action_size = action_size
        # Differs from robomimic: observations are standardised unless the config says otherwise, as for the MLP.
        self.standardize = Standardize(obs_size) if cfg.standardize_obs else nn.Identity()
        self.lstm = nn.LSTM(obs_size, cfg.width, cfg.layers, batch_first=True)
        outputs = cfg.modes * (2 * action_size + 1) if cfg.head == "gmm" else action_size
        self.head = nn.Linear(cfg.width, outputs)

    @property
    def context(self) -> int:
        """To: frames it looks at while acting, beside what it remembers."""
        return 1

    @property
    def sequence(self) -> int:
        """Frames it is trained on at a time."""
        return self.cfg.sequence

    @property
    def chunk(self) -> int:
        """Ta: actions it answers with."""
        return 1

    def fit_statistics(self, demos: "Demonstrations", seed: int = 0) -> None:
        """Set the standardisation from the demonstrations; nothing here is random, `seed` is not used."""
        if isinstance(self.standardize, Standardize):
            self.standardize.fit(demos.observations)

    def mixture(self, features: Tensor, std: float | None = None) -> MixtureSameFamily:
        """The distribution of actions (..., Da) after LSTM features (..., width); `std` in the place of its own."""
        means, scales, logits = self.head(features).split(
            [self.cfg.modes * self.action_size, self.cfg.modes * self.action_size, self.cfg.modes], dim=-1
        )
        means, scales = (x.unflatten(-1, (self.cfg.modes, self.action_size)) for x in (means.tanh(), scales))
        scales = F.softplus(scales) + self.cfg.min_std if std is None else torch.full_like(means, std)
        gaussians = Independent(Normal(means, scales, validate_args=False), 1, validate_args=False)
        return MixtureSameFamily(Categorical(logits=logits, validate_args=False), gaussians, validate_args=False)

    def loss(self, window: Tensor, actions: Tensor) -> Tensor:
        """Negative log-likelihood, or mean squared error, of every step. (B, T, Do), (B, T, Da) -> ()."""
        features = self.lstm(self.standardize(window))[0]  # (B, T, width)
        if self.cfg.head == "mse":
            return F.mse_loss(self.head(features).tanh(), actions)
        return -self.mixture(features).log_prob(actions).mean()

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(K, 1, Do), (K,) -> (K, 1, Da) in [-1, 1]; with "gmm" it draws from torch's global generator."""
        rows = torch.arange(len(window)) if rows is None else rows
        self.queries += len(window)
        features = self._remember(self.standardize(window[:, -1:]), rows)[:, 0]  # (K, width)
        if self.cfg.head == "mse":
            return self.head(features).tanh().unsqueeze(1)
        return self.mixture(features, NARROW if self.cfg.low_noise else None).sample().clamp(-1.0, 1.0).unsqueeze(1)

    def _remember(self, frames: Tensor, rows: Tensor) -> Tensor:
        """One step of the LSTM in these rows, (K, 1, Do) -> (K, 1, width)."""
        age = self.memory.read("age", rows, torch.zeros((), dtype=torch.int64))  # (K,) steps since reset
        state = self.memory.read("state", rows, frames.new_zeros(self.cfg.layers, 2, self.cfg.width))
        begins = (age % self.cfg.sequence == 0).to(frames.device)
        state = state.masked_fill(begins[:, None, None, None], 0.0)  # (K, layers, 2, width)
        hidden, cell = (x.transpose(0, 1).contiguous() for x in state.unbind(dim=2))  # (layers, K, width) each
        features, (hidden, cell) = self.lstm(frames, (hidden, cell))
        self.memory.write("age", rows, age + 1)
        self.memory.write("state", rows, torch.stack([hidden, cell], dim=2).transpose(0, 1))
        return features

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters for the optimiser: weights decay, biases do not (robomimic lets nothing decay)."""
        weights = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        return [{"params": weights, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]
