"""VINN: the actions of the demonstrated frames that look most like this one, in a learned representation.

act = sum_i w_i a_i over the k nearest frames i,  w = softmax(-|f(window) - f(frame_i's window)|)

or, with a queue (FISH), the action of the nearest frame that was not used again and again.

from Pari et al. 2021 (arXiv 2112.01511) and Haldar et al. 2023 (FISH, arXiv 2303.01497). As the paper's base policy
(App. D.4, G.2) f is the transformer of a Behavior Transformer, which is trained on the same demonstrations, or what
modulates the U-Net of a trained Diffusion Policy (FiLM).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
import tyro
from torch import Tensor, nn

from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy
from policy_decorator.base_policies.mlp import Standardize
from policy_decorator.base_policies.windows import window_bounds, window_rows
from policy_decorator.disk import from_json
from policy_decorator.errors import UserError
from policy_decorator.memory import Remembering

if TYPE_CHECKING:
    from policy_decorator.demos.dataset import Demonstrations

ENCODERS: Mapping[str, type] = {"bet": BehaviorTransformer, "film": DiffusionPolicy}
AT_ONCE = 4096  # windows whose features are computed together


@dataclass(frozen=True)
class VINNConfig:
    """Nearest neighbours among the demonstrations' frames."""

    neighbours: int = 5
    """k, frames among which is averaged (VINN: 5) or chosen (FISH: 4)."""
    representation: Literal["bet", "film", "eyes", "standardized", "obs"] = "bet"
    """Where distances are measured: features of a Behavior Transformer, what modulates a Diffusion Policy's U-Net,
    the CNN of a policy that sees pictures, standardised observations, or raw ones."""
    encoder: str | None = None
    """Folder of a trained Behavior Transformer (bet; None trains one), Diffusion Policy (film) or policy that
    sees (eyes) to take them from."""
    bet: BeTConfig = field(default_factory=BeTConfig)
    """The Behavior Transformer to train."""
    diffusion: Annotated[DiffusionConfig | None, tyro.conf.Suppress] = None
    """The Diffusion Policy of film, as its folder said."""
    queue: int = 0
    """Frames that are exempted from being used again (FISH: 3), instead of averaging; 0: average, without a memory."""
    tolerance: int = 1
    """With a queue: how often a frame may be used in an episode before it is exempted."""

    def __post_init__(self) -> None:
        if isinstance(self.bet, dict):  # as JSON has it
            object.__setattr__(self, "bet", BeTConfig(**self.bet))
        if isinstance(self.diffusion, dict):
            object.__setattr__(self, "diffusion", from_json(DiffusionConfig, self.diffusion))
        if self.neighbours < 1 or min(self.queue, self.tolerance) < 0:
            raise UserError(f"VINN needs at least one neighbour, and a queue and tolerance of at least 0, got {self}.")
        if self.representation not in ("bet", "film", "eyes", "standardized", "obs"):
            raise UserError(
                f"representation must be bet, film, eyes, standardized or obs, got {self.representation!r}."
            )
        if self.encoder is not None and self.representation not in (*ENCODERS, "eyes"):
            raise UserError(f"An encoder is for bet, film and eyes, not for {self.representation}: leave out one.")
        if self.representation == "film" and (self.encoder, self.diffusion) == (None, None):
            raise UserError(
                "film takes its features from a trained Diffusion Policy: train one (pidec imitate diffusion) and name "
                "its folder (--encoder FOLDER)."
            )


class VINN(nn.Module):
    """The average action of the nearest demonstrated frames. What it knows of them is part of its parameters."""

    keys: Tensor
    actions: Tensor

    def __init__(self, cfg: VINNConfig, obs_size: int, action_size: int) -> None:
        super().__init__()
        self.obs_size = obs_size
        self.action_size = action_size
        self.encoder: nn.Module = nn.Identity()
        self.learns = cfg.representation == "bet" and cfg.encoder is None
        """Whether there is anything to train; the database is made of the demonstrations in any case."""
        if cfg.encoder is not None:
            self.encoder = _trained(cfg, obs_size, action_size).requires_grad_(False)
            cfg = replace(cfg, encoder=None, **{_FIELD[cfg.representation]: self.encoder.cfg})
        elif cfg.diffusion is not None:
            self.encoder = DiffusionPolicy(cfg.diffusion, obs_size, action_size)
        elif cfg.representation == "bet":
            self.encoder = BehaviorTransformer(cfg.bet, obs_size, action_size)
        elif cfg.representation == "standardized":
            self.encoder = Standardize(obs_size)
        self.cfg = cfg
        with torch.no_grad():
            size = self.features(torch.zeros(1, self.context, obs_size)).shape[1]
        self.register_buffer("keys", torch.zeros(0, size))  # (N, E) features of the demonstrated frames
        self.register_buffer("actions", torch.zeros(0, action_size))  # (N, Da)
        self.seen: tuple[Tensor, Tensor] | None = None  # the demonstrations' frames (N, Do), and episodes' lengths (E,)
        self.stale = False  # whether the keys are those of other parameters
        self.register_state_dict_pre_hook(lambda module, *_: module.refresh())

    @property
    def context(self) -> int:
        """To: frames it looks at."""
        return getattr(self.encoder, "context", 1)

    @property
    def chunk(self) -> int:
        """Ta: actions it answers with."""
        return 1

    def features(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, E)."""
        if isinstance(self.encoder, BehaviorTransformer | DiffusionPolicy):
            return self.encoder.features(window)
        return self.encoder(window[:, -1])

    def fit_statistics(self, demos: "Demonstrations", seed: int = 0) -> None:
        """Keep the demonstrations, and fit the clusters or the standardisation of the representation.

        Raises:
            UserError: fewer frames than neighbours, or as `BehaviorTransformer.fit_statistics`.
        """
        if len(demos.actions) < self.cfg.neighbours:
            raise UserError(
                f"{len(demos.actions)} demonstrated frames are fewer than {self.cfg.neighbours} neighbours."
            )
        if isinstance(self.encoder, Standardize):
            self.encoder.fit(demos.observations)
        elif isinstance(self.encoder, BehaviorTransformer) and self.learns:
            self.encoder.fit_statistics(demos, seed)
        frames, actions = (torch.from_numpy(x).float() for x in (demos.observations, demos.actions))
        self.seen, self.actions = (frames, torch.from_numpy(demos.lengths)), actions.to(self.actions.device)
        self.stale = True
        self.refresh()

    def train(self, mode: bool = True) -> Self:
        """Training ends with a database of the trained parameters."""
        if not mode:
            self.refresh()
        return super().train(mode)

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the keys anew where the parameters have changed since."""
        if not self.stale or self.seen is None:
            return
        frames, lengths = self.seen
        rows = window_rows(*window_bounds(lengths, self.context, pad_start=True), self.context)  # (N, To)
        device = self.actions.device
        self.keys = torch.cat([self.features(frames[part].to(device)) for part in rows.split(AT_ONCE)])
        self.stale = False

    def loss(self, window: Tensor, actions: Tensor) -> Tensor:
        """The Behavior Transformer's; zero where there is nothing to train. (B, To, Do), (B, To, Da) -> ()."""
        if not self.learns:
            return window.new_zeros((), requires_grad=True)
        self.stale = True
        assert isinstance(self.encoder, BehaviorTransformer)
        return self.encoder.loss(window, actions)

    def _nearest(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Distances to the nearest frames and which they are, nearest first, (B, k) each."""
        self.refresh()
        if len(self.keys) == 0:
            raise UserError("This VINN holds no demonstrations: train it first (pidec imitate vinn).")
        # Without matrix products, which lose the small distances that matter.
        mode = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(self.features(window), self.keys, compute_mode=mode)  # (B, N)
        near = distance.topk(self.cfg.neighbours, largest=False)
        return near.values, near.indices

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, 1, Da) in [-1, 1]."""
        distance, which = self._nearest(window)
        weights = (-distance).softmax(dim=-1).unsqueeze(-1)  # (B, k, 1)
        return (weights * self.actions[which]).sum(dim=1, keepdim=True).clamp(-1.0, 1.0)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Those of the Behavior Transformer; one without parameters where there is nothing to train."""
        if not self.learns:
            return [{"params": [], "weight_decay": 0.0}]
        assert isinstance(self.encoder, BehaviorTransformer)
        return self.encoder.parameter_groups(weight_decay)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """The database has as many rows as were demonstrated."""
        for name in ("keys", "actions"):
            if (stored := state_dict.get(prefix + name)) is not None:
                setattr(self, name, getattr(self, name).new_empty(stored.shape))
        self.stale = False
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class QueuedVINN(Remembering, VINN):
    """The nearest frame's action, but a frame that was used often enough makes way for the next nearest for a while."""

    @torch.no_grad()
    def act(self, window: Tensor, rows: Tensor | None = None) -> Tensor:
        """(K, To, Do), (K,) -> (K, 1, Da) in [-1, 1]."""
        rows = torch.arange(len(window)) if rows is None else rows
        self.queries += len(window)
        which = self._nearest(window)[1].cpu()  # (K, k)
        queue = self.memory.read("queue", rows, which.new_zeros(self.cfg.queue))  # (K, n) frames + 1, 0: none
        used = self.memory.read("used", rows, which.new_zeros(len(self.keys)))  # (K, N) times in this episode
        exempted = (which.unsqueeze(2) + 1 == queue.unsqueeze(1)).any(dim=2)  # (K, k)
        first = exempted.logical_not().byte().argmax(dim=1)
        first = torch.where(exempted.all(dim=1), which.shape[1] - 1, first)  # the last of them where none is left
        chosen = which.take_along_dim(first[:, None], dim=1)  # (K, 1)
        used = used.scatter_add(1, chosen, torch.ones_like(chosen))
        often = (used.take_along_dim(chosen, dim=1) > self.cfg.tolerance) & ~exempted.all(dim=1, keepdim=True)  # (K, 1)
        self.memory.write("queue", rows, torch.where(often, torch.cat([queue[:, 1:], chosen + 1], dim=1), queue))
        self.memory.write("used", rows, used)
        return self.actions[chosen.to(self.actions.device)].clamp(-1.0, 1.0)


def build_vinn(cfg: VINNConfig, obs_size: int, action_size: int) -> VINN:
    """With a memory where there is a queue to remember. Raises UserError: eyes, and nothing to see."""
    if cfg.representation == "eyes":
        raise UserError("The representation eyes is for pictures: take a task that shows some (task:rgb).")
    return (QueuedVINN if cfg.queue else VINN)(cfg, obs_size, action_size)


_FIELD = {"bet": "bet", "film": "diffusion"}
"""Representation -> the field of the config that says how its encoder is built."""


def _trained(cfg: VINNConfig, obs_size: int, action_size: int) -> Any:
    """The encoder. Raises UserError where the folder holds none of this representation and of these sizes."""
    from policy_decorator.base_policies.checkpoint import load_policy  # knows this policy too

    policy, wanted = load_policy(str(cfg.encoder)), ENCODERS[cfg.representation]
    if not isinstance(policy, wanted):
        kind = type(policy).__name__
        raise UserError(f"The encoder {cfg.encoder} is a {kind}: {cfg.representation} takes a {wanted.__name__}.")
    if (policy.obs_size, policy.action_size) != (obs_size, action_size):
        raise UserError(
            f"The encoder {cfg.encoder} was trained on another task: its sizes are not {obs_size}, {action_size}."
        )
    return policy
