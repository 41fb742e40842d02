"""Behavior Transformer (BeT): a causal transformer that picks an action cluster and corrects it.

bin  = argmin_k |a - c_k|^2                                   c_k: k-means centres of all demonstrated actions
loss = mean_t -(1 - p_bin)^gamma log p_bin  +  scale * mean_t (offset_bin - (a - c_bin))^2
act  = c_bin + offset_bin at the newest frame

For SAC (paper, App. B.4.1) offsets are bounded by tanh, and a stands for S a: actions are scaled before they are
clustered, so that every one lies within reach of a centre, and scaled back at the end.

from Shafiullah et al. 2022; sizes from the paper's App. B.1.1, Table 4.
"""

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from policy_decorator.base_policies.mlp import Standardize
from policy_decorator.base_policies.transformer import INIT_STD, Block, drop
from policy_decorator.errors import UserError

if TYPE_CHECKING:
    from policy_decorator.demos.dataset import Demonstrations

KMEANS_STEPS = 50
HEAD_WEIGHT_DECAY = 0.01  # the released code gives the head no value, and so AdamW's default, bias included


@dataclass(frozen=True)
class BeTConfig:
    """Behavior Transformer; defaults from the paper's Table 4, else from the released code."""

    context: int = 10
    """Frames it looks at (Table 4: 10 or 20)."""
    clusters: int = 8
    """Action clusters K (Table 4: 4 or 8)."""
    layers: int = 4
    """Transformer blocks (Table 4)."""
    heads: int = 4
    """Attention heads (Table 4)."""
    width: int = 128
    """Embedding size (Table 4)."""
    gpt_output: int = 256
    """Features between the transformer and its head (released code)."""
    dropout: float = 0.1
    """On embeddings, attention weights and the outputs of attention and MLP."""
    dropout_at_inference: bool = True
    """Keep the dropout while acting, as the released code does; the paper does not say so."""
    mode: Literal["argmax", "sample"] = "argmax"
    """How a bin is chosen while acting: the likeliest (released code), or drawn (original BeT)."""
    offset_scale: float = 1000.0
    """Weight of the offset loss."""
    focal_gamma: float = 2.0
    """Focusing exponent of the focal loss; 0 is cross entropy."""
    standardize_obs: bool = False
    """Standardise the observations with the demonstrations' statistics; the released code takes them raw."""
    bounded_offset: bool = False
    """tanh on the offsets (App. B.4.1): the base of sac-lora."""
    action_scale: float = 1.0
    """Factor of all actions before they are clustered, undone in acting (App. B.4.1: 0.5 on the Adroit hand)."""
    last_action_scale: float = 1.0
    """Another factor, of the last entry alone (App. B.4.1: 0.3 for ManiSkill's gripper)."""

    def __post_init__(self) -> None:
        if min(self.context, self.clusters, self.layers, self.heads, self.width, self.gpt_output) < 1:
            raise UserError(f"The sizes of a Behavior Transformer must be at least 1, got {self}.")
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of heads {self.heads}: change one of them.")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}.")
        if self.mode not in ("argmax", "sample"):
            raise UserError(f"mode must be 'argmax' or 'sample', got {self.mode!r}.")
        if min(self.action_scale, self.last_action_scale) <= 0:
            raise UserError("action_scale and last_action_scale must be above 0.")


class BehaviorTransformer(nn.Module):
    """A policy of one discrete choice among K action clusters and one continuous correction."""

    centres: Tensor  # (K, Da), of scaled actions
    scale: Tensor | None  # (Da,)
    lora_layers = ("attention_in", "attention_out", "head")
    """What fine-tuning adapts (App. B.4.1): all attention layers and the head."""

    def __init__(self, cfg: BeTConfig, obs_size: int, action_size: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.obs_size = obs_size
        self.action_size = action_size
        self.standardize = Standardize(obs_size) if cfg.standardize_obs else nn.Identity()
        self.embed = nn.Linear(obs_size, cfg.width)
        self.position = nn.Parameter(torch.empty(cfg.context, cfg.width))
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.heads) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.width)
        self.output = nn.Linear(cfg.width, cfg.gpt_output, bias=False)
        self._initialise()
        self.head = nn.Linear(cfg.gpt_output, cfg.clusters * (1 + action_size))  # outside: PyTorch's own initialisation
        self.register_buffer("centres", torch.zeros(cfg.clusters, action_size))
        scale = torch.full((action_size,), cfg.action_scale)
        scale[-1] *= cfg.last_action_scale
        self.register_buffer("scale", None if cfg.action_scale == cfg.last_action_scale == 1 else scale)

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, INIT_STD)
                if module.bias is not None:
                    module.bias.zero_()
        self.position.normal_(0.0, INIT_STD)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in block.residual_projections():  # so that the stream's variance does not grow with depth
                layer.weight.normal_(0.0, INIT_STD / (2 * self.cfg.layers) ** 0.5)

    @property
    def context(self) -> int:
        """To: frames it looks at."""
        return self.cfg.context

    @property
    def chunk(self) -> int:
        """Ta: actions it answers with."""
        return 1

    def fit_statistics(self, demos: "Demonstrations", seed: int = 0) -> None:
        """Fit the action clusters (and the standardisation) to the demonstrations.

        Raises:
            UserError: fewer distinct actions than clusters.
        """
        actions = np.asarray(demos.actions, dtype=np.float64)  # (N, Da), not whitened
        if self.scale is not None:
            actions = actions * self.scale.cpu().double().numpy()
        distinct = len(np.unique(actions, axis=0))
        if distinct < self.cfg.clusters:
            raise UserError(
                f"The demonstrations hold {distinct} distinct actions, too few for "
                f"{self.cfg.clusters} clusters: lower `clusters` or add demonstrations."
            )
        # Differs from the released code: scikit-learn's k-means, which stops when no action changes cluster
        # and re-seeds an empty cluster with the action farthest from its centre, instead of at random.
        means = KMeans(
            self.cfg.clusters,
            init="random",
            n_init=1,  # pyright: ignore[reportArgumentType]
            max_iter=KMEANS_STEPS,
            tol=0.0,
            random_state=seed,
        )
        self.centres.copy_(torch.from_numpy(means.fit(actions).cluster_centers_))
        if isinstance(self.standardize, Standardize):
            self.standardize.fit(demos.observations)

    @property
    def _dropout(self) -> float:
        """While acting."""
        # Differs from the paper: dropout stays on while acting unless the config says otherwise, as in the
        # released code; applied functionally, so that `.train()` and `.eval()` change nothing here.
        return self.cfg.dropout if self.cfg.dropout_at_inference else 0.0

    def _features(self, window: Tensor, dropout: float, newest_only: bool = False) -> Tensor:
        x = self.embed(self.standardize(window)) + self.position[: window.shape[1]]  # (B, T, E)
        x = drop(x, dropout)
        for i, block in enumerate(self.blocks, start=1):
            x = block(x, dropout, newest_only and i == len(self.blocks))
        return self.output(self.norm(x))

    def _heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.head(features)  # (..., K + K Da)
        logits, offsets = answer.split([self.cfg.clusters, self.cfg.clusters * self.action_size], dim=-1)
        return logits, offsets.unflatten(-1, (self.cfg.clusters, self.action_size))

    def features(self, window: Tensor, dropout: bool = False) -> Tensor:
        """What is made of the newest frame; with `dropout`, as it acts. (B, To, Do) -> (B, gpt_output)."""
        return self._features(window, self._dropout if dropout else 0.0, newest_only=True)[:, -1]

    def logits_and_offsets(self, window: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """What every frame says, before tanh. (B, T, Do) -> logits (B, T, K), offsets (B, T, K, Da)."""
        return self._heads(self._features(window, dropout))

    def loss(self, window: Tensor, actions: Tensor) -> Tensor:
        """Focal loss of the bin plus scaled offset loss, over all frames. (B, T, Do), (B, T, Da) -> ()."""
        logits, offsets = self.logits_and_offsets(window, self.cfg.dropout if self.training else 0.0)
        scaled = actions if self.scale is None else actions * self.scale
        bins = self._bins_of(scaled)  # (B, T)
        picked = offsets.take_along_dim(bins[..., None, None], dim=2).squeeze(2)  # (B, T, Da)
        picked = picked.tanh() if self.cfg.bounded_offset else picked
        offset = F.mse_loss(picked, scaled - self.centres[bins])
        return focal_loss(logits, bins, self.cfg.focal_gamma) + self.cfg.offset_scale * offset

    def deterministic(self) -> "BehaviorTransformer":
        """A copy that acts by its likeliest bins and without dropout: for tuning."""
        other = copy.deepcopy(self)
        other.cfg = replace(self.cfg, dropout_at_inference=False, mode="argmax")
        return other

    def _bins_of(self, scaled: Tensor) -> Tensor:
        """(..., Da) -> the nearest clusters (...)."""
        return (scaled.unsqueeze(-2) - self.centres).square().sum(-1).argmin(-1)

    def choice(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The bin that it acts by under features (..., G): its centre and its offset before tanh, (..., Da) each."""
        return self._picked(*self._heads(features))

    def _picked(self, logits: Tensor, offsets: Tensor, bins: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if bins is None and self.cfg.mode == "argmax":
            bins = logits.argmax(-1)
        elif bins is None:
            bins = torch.multinomial(logits.detach().softmax(-1).flatten(0, -2), 1).view(logits.shape[:-1])
        return self.centres[bins], offsets.take_along_dim(bins[..., None, None], dim=-2).squeeze(-2)

    def action(self, centre: Tensor, offset: Tensor) -> Tensor:
        """The action of a bin and its offset before tanh, not clamped, (..., Da)."""
        scaled = centre + (offset.tanh() if self.cfg.bounded_offset else offset)
        return scaled if self.scale is None else scaled / self.scale

    def means(self, window: Tensor, actions: Tensor | None = None, newest_only: bool = False) -> Tensor:
        """The actions of all frames (B, T, Da) or the newest (B, 1, Da), not clamped, with the offsets' gradients.

        The bins are those that `act` chooses or, where `actions` (B, T, Da) are given, those to which these belong.
        """
        logits, offsets = self._heads(self._features(window, self._dropout, newest_only))
        scaled = actions if actions is None or self.scale is None else actions * self.scale
        return self.action(*self._picked(logits, offsets, None if scaled is None else self._bins_of(scaled)))

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, 1, Da) in [-1, 1]; where random, it draws from torch's global generator."""
        # Differs from the released code: clamped here, where it leaves the clipping to the environment.
        return self.means(window, newest_only=True).clamp(-1.0, 1.0)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters for the optimiser, as the released code groups them.

        The transformer's linear weights decay by `weight_decay`, its biases, norms and positions not at
        all, the head by AdamW's default.
        """
        body = [(name, parameter) for name, parameter in self.named_parameters() if not name.startswith("head.")]
        weights = [parameter for name, parameter in body if parameter.ndim > 1 and name != "position"]
        rest = [parameter for name, parameter in body if parameter.ndim == 1 or name == "position"]
        return [
            {"params": weights, "weight_decay": weight_decay},
            {"params": rest, "weight_decay": 0.0},
            {"params": list(self.head.parameters()), "weight_decay": HEAD_WEIGHT_DECAY},
        ]


def focal_loss(logits: Tensor, bins: Tensor, gamma: float) -> Tensor:
    """mean -(1 - p)^gamma log p of the right bin, without class weights. (..., K), (...) -> ()."""
    log_p = logits.log_softmax(-1).take_along_dim(bins.unsqueeze(-1), dim=-1)  # (..., 1)
    return -((1 - log_p.exp()).pow(gamma) * log_p).mean()
