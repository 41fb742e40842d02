"""Diffusion Policy: a sequence of actions, denoised from Gaussian noise under the newest observations.

loss = mean (unet(sqrt(abar_k) a + sqrt(1 - abar_k) noise, k, c) - noise)^2     k uniform in 0 ... 99, c: the window
act  = the noise denoised in a few steps, of which rows To - 1 ... To + Ta - 2 are executed

Row 0 of a sequence belongs to the window's first frame, so row To - 1 is the action of now. The noise schedule and both
ways of denoising are those of the library diffusers.

from Chi et al. 2023 (arXiv 2303.04137); sizes from the paper's App. B.1.2, Table 6, and the released code.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy_decorator.base_policies.denoising_mlp import DenoisingMLP
from policy_decorator.base_policies.mlp import Standardize
from policy_decorator.base_policies.unet import GROUPS, UNet1D
from policy_decorator.errors import MissingExtra, UserError

if TYPE_CHECKING:
    from policy_decorator.demos.dataset import Demonstrations

ACTION_SLACK = 1e-4  # as in `demos.dataset.check`


@dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion Policy; defaults from the released code, which the paper's Table 6 shares but for the widths."""

    context: int = 2
    """Frames it looks at (Table 6: observation horizon 2)."""
    horizon: int = 16
    """Actions it predicts, from the window's first frame on (Table 6: 16); a multiple of 2 ** (levels - 1)."""
    chunk: int = 4
    """Actions it executes (Table 6: action horizon 4)."""
    # Differs from the paper: its Table 6 prints 256, 512, 1024 beside "4 M" parameters, which are 63 to 66 M; the
    # released code's widths make 4 M.
    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of the U-Net's levels; the original Diffusion Policy has 256 512 1024."""
    network: Literal["unet", "mlp"] = "unet"
    """What predicts: a U-Net (the paper), or a residual MLP (DPPO)."""
    mlp_width: int = 1024
    """Units of the MLP's layers."""
    mlp_seeing: tuple[int, ...] = ()
    """Units of layers between what it sees and the MLP (DPPO: 512 64 for Square, none for Transport)."""
    step_size: int = 64
    """Features of the denoising step (released code; DPPO: 32)."""
    diffusion_steps: int = 100
    """Denoising steps that it is trained on (Table 6)."""
    prediction: Literal["epsilon", "sample"] = "epsilon"
    """What the network predicts: the noise (released code), or the actions, which takes far fewer updates to be
    precise (names of diffusers; Ramesh et al. 2022 arXiv 2204.06125 predict so)."""
    sampler: Literal["ddim", "ddpm"] = "ddim"
    """How it denoises while acting: in `ddim_steps` steps (released code online), or in all of them, randomly."""
    ddim_steps: int = 4
    """Denoising steps of "ddim" (released code): 75, 50, 25 and 0 of 100."""
    standardize_obs: bool = False
    """Standardise the observations with the demonstrations' statistics; the released code takes them raw."""
    late_steps: int = 0
    """Last steps of its denoising that have a network of their own. 0 in imitation: tuning leaves it behind (DPPO)."""

    def __post_init__(self) -> None:
        for name in ("widths", "mlp_seeing"):  # JSON has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.network not in ("unet", "mlp"):
            raise UserError(f"network must be 'unet' or 'mlp', got {self.network!r}.")
        if min((self.mlp_width, *self.mlp_seeing)) < 1:
            raise UserError(f"mlp_width and mlp_seeing must be at least 1, got {self.mlp_width}, {self.mlp_seeing}.")
        if min(self.context, self.chunk, self.diffusion_steps) < 1 or not self.widths:
            raise UserError(f"The sizes of a Diffusion Policy must be at least 1, got {self}.")
        if any(width < 1 or width % GROUPS for width in self.widths):
            raise UserError(f"widths must be multiples of {GROUPS}, got {self.widths}.")
        if self.step_size < 4 or self.step_size % 2:
            raise UserError(f"step_size must be even and at least 4, got {self.step_size}.")
        halved = 2 ** (len(self.widths) - 1) if self.network == "unet" else 1
        if self.horizon % halved or self.horizon < self.context - 1 + self.chunk:
            raise UserError(
                f"horizon {self.horizon} must be a multiple of {halved} for "
                f"{len(self.widths)} levels, and reach over {self.context - 1} past and {self.chunk} executed actions."
            )
        if self.sampler not in ("ddim", "ddpm"):
            raise UserError(f"sampler must be 'ddim' or 'ddpm', got {self.sampler!r}.")
        if self.prediction not in ("epsilon", "sample"):
            raise UserError(f"prediction must be 'epsilon' or 'sample', got {self.prediction!r}.")
        if not 1 <= self.ddim_steps <= self.diffusion_steps:
            raise UserError(f"ddim_steps must be between 1 and {self.diffusion_steps}, got {self.ddim_steps}.")
        if not 0 <= self.late_steps < self.acting_steps:
            raise UserError(f"late_steps must be between 0 and {self.acting_steps - 1}, got {self.late_steps}.")

    @property
    def acting_steps(self) -> int:
        """K: denoising steps of an action."""
        return self.ddim_steps if self.sampler == "ddim" else self.diffusion_steps


class DiffusionPolicy(nn.Module):
    """A policy that draws sequences of actions."""

    def __init__(self, cfg: DiffusionConfig, obs_size: int, action_size: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.obs_size = obs_size
        self.action_size = action_size
        self.standardize = Standardize(obs_size) if cfg.standardize_obs else nn.Identity()
        self.unet = self._new_network()  # or the MLP: one name, so that saved policies stay readable
        self.late = self._new_network() if cfg.late_steps else None

    def _new_network(self) -> nn.Module:
        cfg, seen = self.cfg, self.cfg.context * self.obs_size
        if cfg.network == "mlp":
            sequence = cfg.horizon, self.action_size
            return DenoisingMLP(sequence, seen, cfg.mlp_width, cfg.step_size, cfg.mlp_seeing)
        return UNet1D(self.action_size, seen, cfg.widths, cfg.step_size)

    @property
    def context(self) -> int:
        """To: frames it looks at."""
        return self.cfg.context

    @property
    def horizon(self) -> int:
        """Th: actions it predicts, and is trained on, from the window's first frame on."""
        return self.cfg.horizon

    @property
    def chunk(self) -> int:
        """Ta: actions it answers with."""
        return self.cfg.chunk

    @cached_property
    def noising(self) -> Any:
        """The schedule that it is trained with."""
        return noise_schedule(self.cfg, "ddpm")

    @cached_property
    def denoising(self) -> Any:
        """The schedule that it acts with, beside `noising`, which lives where the demonstrations do."""
        return noise_schedule(self.cfg, self.cfg.sampler)

    def fit_statistics(self, demos: "Demonstrations", seed: int = 0) -> None:
        """Set the standardisation from the demonstrations; nothing here is random, `seed` is not used.

        Raises:
            UserError: actions outside [-1, 1], which denoising cannot reach; late_steps; or diffusers is missing.
        """
        if self.late is not None:
            raise UserError("late_steps is what tuning leaves behind: one network is trained for all steps, give 0.")
        reach = float(np.abs(demos.actions).max(initial=0.0))
        if reach > 1 + ACTION_SLACK:
            raise UserError(f"Actions reach {reach:.4g}, a Diffusion Policy only [-1, 1]: clip or rescale them.")
        if isinstance(self.standardize, Standardize):
            self.standardize.fit(demos.observations)
        _ = self.noising, self.denoising  # a missing library is told of before the training

    def condition(self, window: Tensor) -> Tensor:
        """What every action is denoised under: (B, To, Do) -> (B, To * Do)."""
        return self.standardize(window).flatten(1)

    @torch.no_grad()
    def features(self, window: Tensor) -> Tensor:
        """What modulates the first block of the U-Net at the last denoising step, (B, To, Do) -> (B, E): for VINN.

        Raises:
            UserError: the network is an MLP, which is not modulated.
        """
        if not isinstance(self.unet, UNet1D):
            raise UserError("Features of a Diffusion Policy are its U-Net's: train one with --network unet.")
        condition = self.condition(window)
        step = torch.zeros(len(condition), dtype=torch.long, device=condition.device)
        return self.unet.modulation(step, condition)

    def loss(self, window: Tensor, actions: Tensor) -> Tensor:
        """Mean squared error of the predicted noise, or of the actions. (B, To, Do), (B, Th, Da) -> (), random."""
        noise = torch.randn_like(actions)
        step = torch.randint(self.cfg.diffusion_steps, (len(actions),), device=actions.device)
        noisy = self.noising.add_noise(actions, noise, step)
        target = noise if self.cfg.prediction == "epsilon" else actions
        return F.mse_loss(self.unet(noisy, step, self.condition(window)), target)

    @torch.no_grad()
    def denoise(self, noise: Tensor, condition: Tensor) -> Tensor:
        """(B, Th, Da) Gaussian, (B, C) -> (B, Th, Da) actions. Random with "ddpm" only."""
        x = noise
        for place, k in enumerate(self.denoising.timesteps.tolist()):
            step = torch.full((len(x),), k, device=x.device)
            x = self.denoising.step(self.network(place)(x, step, condition), k, x).prev_sample
        return x

    def network(self, place: int) -> nn.Module:
        """What predicts at a place 0 ... K - 1 of its denoising, the noisiest first."""
        late = self.late is not None and place >= self.cfg.acting_steps - self.cfg.late_steps
        return self.late if late and self.late is not None else self.unet

    def tunable(self, steps: int) -> "DiffusionPolicy":
        """A copy that acts as this does, and of which only the last `steps` of its denoising can be trained.

        Raises:
            UserError: it has been tuned before, in other steps.
        """
        last = min(steps, self.cfg.acting_steps) % self.cfg.acting_steps  # 0: all of them, by one network
        other = copy.deepcopy(self)
        if self.late is None and last:
            other.cfg, other.late = replace(self.cfg, late_steps=last), copy.deepcopy(self.unet)
        if other.cfg.late_steps != last:
            raise UserError(f"It has been tuned in its last {self.cfg.late_steps} denoising steps: tune the same ones.")
        other.requires_grad_(False)
        (other.unet if other.late is None else other.late).requires_grad_(True)
        return other

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da) in [-1, 1].

        It draws from torch's global generator, one stream for all rows: after `torch.manual_seed` the same B windows
        get the same actions again, and no window has an influence on another row; but asked about alone or in another
        place, a window meets other noise.
        """
        condition = self.condition(window)  # (B, C)
        noise = torch.randn(len(condition), self.horizon, self.action_size, device=condition.device)
        now = self.context - 1
        return self.denoise(noise, condition)[:, now : now + self.chunk].clamp(-1.0, 1.0)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameters for the optimiser: all decay, as in the released code."""
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]


def noise_schedule(cfg: DiffusionConfig, sampler: Literal["ddim", "ddpm"]) -> Any:
    """A scheduler of diffusers, set to its steps: squared cosine, actions clipped at every step.

    Raises:
        MissingExtra: diffusers is not installed.
    """
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    except ModuleNotFoundError:
        raise MissingExtra("diffusers", "diffusion") from None
    kind, steps = (DDIMScheduler, cfg.ddim_steps) if sampler == "ddim" else (DDPMScheduler, cfg.diffusion_steps)
    schedule = kind(
        num_train_timesteps=cfg.diffusion_steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=cfg.prediction,
        clip_sample=True,
        timestep_spacing="leading",
    )
    schedule.set_timesteps(steps)
    return schedule
