"""Denoising as decisions: every step of a Diffusion Policy is a Gaussian action (DPPO, arXiv:2409.00588, Sec. 4).

    x^K ~ N(0, 1),   x^(k-1) ~ N(mu(x^k, k, o), max(sigma_k, floor)^2),   the action is x^0

    mu      = sqrt(abar') x0 + sqrt(1 - abar' - sigma^2) eps,   x0 = clip((x - sqrt(1 - abar) eps) / sqrt(abar))
    sigma^2 = (1 - abar') / (1 - abar) * (1 - abar / abar')   abar' of the step after: eta 1

Over all training steps this is DDPM, over a few of them DDIM with eta 1. The first K - K' steps are taken by the
network as it was, the last K' by the one that is being tuned.

Shapes: Th actions are predicted, Da numbers each; a chain (B, K' + 1, Th, Da) begins with what the first tuned step is
given, and ends with what is executed in rows To - 1 ... To + Ta - 2.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Normal

from policy_decorator.errors import UserError
from policy_decorator.rl.windows import unflattened

LOWEST, HIGHEST = -5.0, 2.0
"""Range of the log-density of one number of an action (DPPO's code)."""


class Diffusion(Protocol):
    """A Diffusion Policy, of which only this is known."""

    @property
    def context(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def horizon(self) -> int: ...
    @property
    def action_size(self) -> int: ...
    @property
    def denoising(self) -> Any: ...  # a DDIMScheduler or a DDPMScheduler of diffusers, set to its steps
    def condition(self, window: Tensor) -> Tensor: ...  # (N, To, Do) -> (N, C)
    def network(self, place: int) -> Any: ...  # of step 0 ... K - 1: noisy (N, Th, Da), step (N,), (N, C) -> the same


@dataclass(frozen=True)
class DenoisingConfig:
    """Defaults are DPPO's for robomimic with states."""

    tuned_steps: int = 10
    """Last denoising steps that are tuned (K'); all of them where the base takes fewer."""
    sampling_std: float = 0.1
    """Smallest standard deviation of a denoising step in training, those that are not tuned too: exploration."""
    density_std: float = 0.1
    """Smallest one in the log-probabilities."""
    noise_limit: float = 3.0
    """Standard deviations at which a step's noise is cut off."""

    def __post_init__(self) -> None:
        if self.tuned_steps < 1 or min(self.sampling_std, self.density_std, self.noise_limit) <= 0:
            raise UserError(
                "tuned_steps must be at least 1; sampling_std, density_std and noise_limit must be above 0."
            )


class Denoising:
    """Draws chains, and says how likely their steps are. `chain` is the last one that was drawn.

    Args:
        policy: what is tuned, with a network for its last K' steps that is not that of the first ones, if there are
            such.
        obs_size: Do; what is seen is the flattened window (B, To * Do).
    """

    def __init__(self, policy: Diffusion, obs_size: int, cfg: DenoisingConfig | None = None) -> None:
        self.policy, self.obs_size, self.cfg = policy, obs_size, cfg or DenoisingConfig()
        schedule = policy.denoising
        kept, steps = schedule.alphas_cumprod, schedule.timesteps.cpu()  # (training steps,), (K,) noisiest first
        self.now, self.before = kept[steps], torch.cat([kept[steps[1:]], kept.new_ones(1)])  # abar and abar', (K,)
        # Differs from the paper: where x0 is clipped, DPPO's DDIM derives the noise anew from it. A base that acts by
        # DDIM does not (the default of diffusers), so neither do its chains; DDPM is the same thing with it.
        self.renews = "DDPM" in type(schedule).__name__
        self.predicts_noise = schedule.config.prediction_type == "epsilon"
        self.limit = float(schedule.config.clip_sample_range)
        self.steps, self.count = steps, len(steps)
        self.tuned = min(self.cfg.tuned_steps, self.count)
        self.first = policy.context - 1  # row of the first executed action
        self.chain = torch.zeros(0)  # (B, K' + 1, Th, Da)

    def to(self, device: torch.device) -> "Denoising":
        self.now, self.before, self.steps = self.now.to(device), self.before.to(device), self.steps.to(device)
        return self

    def gaussian(self, net: Any, x: Tensor, place: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, Th, Da) and standard deviation (N, 1, 1), without its floor, of the step at `place` 0 ... K - 1.

        x (N, Th, Da), place (N,), condition (N, C). The library's own step takes one place for all rows; this is
        tested against it.
        """
        now, before = (abar[place][:, None, None] for abar in (self.now, self.before))
        predicted = net(x, self.steps[place], condition)
        if self.predicts_noise:
            noise, clean = predicted, (x - (1 - now).sqrt() * predicted) / now.sqrt()
        else:
            noise, clean = (x - now.sqrt() * predicted) / (1 - now).sqrt(), predicted
        clean = clean.clamp(-self.limit, self.limit)
        if self.renews:
            noise = (x - now.sqrt() * clean) / (1 - now).sqrt()
        variance = (1 - before) / (1 - now) * (1 - now / before)
        return before.sqrt() * clean + (1 - before - variance).clamp(min=0).sqrt() * noise, variance.sqrt()

    def condition(self, seen: Tensor) -> Tensor:
        """(N, To * Do) -> (N, C)."""
        return self.policy.condition(unflattened(seen, self.obs_size))

    def fresh_noise(self, seen: Tensor) -> Tensor:
        """Of x^K and of every step, (B, (K + 1) * Th * Da)."""
        size = (self.count + 1) * self.policy.horizon * self.policy.action_size
        return torch.randn(len(seen), size, device=seen.device)

    @torch.no_grad()
    def __call__(self, seen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(B, To * Do), (B, (K + 1) * Th * Da) -> what is executed (B, Ta, Da), unclipped, and its density (B,)."""
        shape = self.count + 1, self.policy.horizon, self.policy.action_size
        x, *steps = noise.unflatten(-1, shape).unbind(1)
        condition, chain, density = self.condition(seen), [], x.new_zeros(len(x))
        for k, drawn in enumerate(steps):
            tuned = k >= self.count - self.tuned
            chain += [x] if tuned else []
            place = torch.full((len(x),), k, device=x.device)
            mean, std = self.gaussian(self.policy.network(k), x, place, condition)
            drawn = drawn.clamp(-self.cfg.noise_limit, self.cfg.noise_limit)
            x = mean + std.clamp(min=self.cfg.sampling_std) * drawn
            density = density + self._density(mean, std, x) if tuned else density
        self.chain = torch.stack([*chain, x], dim=1)
        return self.executed(x), density

    def executed(self, x: Tensor) -> Tensor:
        """(N, Th, *) -> (N, Ta, *)."""
        return x[:, self.first : self.first + self.policy.chunk]

    def pairs(self, chain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, K' + 1, Th, Da) -> every tuned step of all: from and to (B * K', Th, Da), which of 0 ... K' - 1."""
        which = torch.arange(self.tuned, device=chain.device).repeat(len(chain))
        return chain[:, :-1].flatten(0, 1), chain[:, 1:].flatten(0, 1), which

    def log_density(self, seen: Tensor, x: Tensor, following: Tensor, which: Tensor) -> Tensor:
        """Of tuned steps, from and to (N, Th, Da), `which` (N,) of 0 ... K' - 1, under `seen` (N, To * Do). (N,).

        It is the mean over the numbers that are executed: a ratio says how much the average one has moved. Predicted
        actions that are not executed do not count, and each number's share is cut to `LOWEST` ... `HIGHEST` (DPPO's
        code).
        """
        net, place = self.policy.network(self.count - 1), self.count - self.tuned + which
        return self._density(*self.gaussian(net, x, place, self.condition(seen)), following)

    def _density(self, mean: Tensor, std: Tensor, following: Tensor) -> Tensor:
        step = Normal(mean, std.clamp(min=self.cfg.density_std), validate_args=False)
        return self.executed(step.log_prob(following)).clamp(LOWEST, HIGHEST).flatten(1).mean(-1)


def clip_ranges(steps: int, smallest: float, largest: float, growth: float = 3.0) -> Tensor:
    """PPO's clip range of every tuned step, (K',): from `smallest`, of the noisiest, exponentially to `largest`."""
    along = torch.linspace(0, 1, steps) if steps > 1 else torch.ones(1)
    return smallest + (largest - smallest) * torch.expm1(growth * along) / math.expm1(growth)
