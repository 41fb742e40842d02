"""The update of `rl/sac.py` as one would write it first, in plain eager PyTorch: the baseline of `update_vs_eager`.

Critics one after the other, autograd through everything, Adam as it comes, targets parameter by parameter, PyTorch's
default settings. Same weights, batch and noise give the same numbers as `SAC` (tests/bench/test_eager.py).
"""

import math
from copy import deepcopy
from itertools import chain, pairwise

import torch
from torch import Tensor, nn

from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.types import Transition


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class EagerSAC:
    """Soft Actor-Critic on a residual: action = base + bound * raw."""

    def __init__(self, obs: int, action: int, bound: float, nets: NetConfig, cfg: SACConfig, device: str) -> None:
        hidden = (nets.width,) * nets.depth
        self.bound, self.nets, self.cfg, self.action_size = bound, nets, cfg, action
        self.actor = mlp((obs, *hidden, 2 * action)).to(device)
        self.critics = [mlp((obs + action, *hidden, 1)).to(device) for _ in range(nets.critics)]
        self.targets = deepcopy(self.critics)
        self.log_temperature = torch.tensor(math.log(cfg.temperature), device=device, requires_grad=True)
        self.critic_params = list(chain.from_iterable(q.parameters() for q in self.critics))
        self.critic_opt = torch.optim.Adam(self.critic_params, cfg.lr)
        self.actor_opt = torch.optim.Adam(self.actor.parameters(), cfg.lr)
        self.temperature_opt = torch.optim.Adam([self.log_temperature], cfg.lr)

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Do) -> raw (B, Da), log-probability (B,)."""
        mean, x = self.actor(obs).chunk(2, dim=-1)  # (B, Da) each
        low, high = self.nets.log_std_min, self.nets.log_std_max
        log_std = low + 0.5 * (high - low) * (torch.tanh(x) + 1)
        noise = torch.randn(mean.shape, device=obs.device)
        u = mean + log_std.exp() * noise
        gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        squash = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
        return torch.tanh(u), (gaussian - squash).sum(-1)

    def smallest(self, critics: list[nn.Sequential], obs: Tensor, action: Tensor) -> Tensor:
        """(B,) the smallest answer of the critics."""
        x = torch.cat([obs, action], dim=-1)
        return torch.stack([q(x).squeeze(-1) for q in critics]).min(dim=0).values

    def update(self, b: Transition) -> None:
        """One gradient step of each loss."""
        base, next_base, raw = b.base.flatten(1), b.next_base.flatten(1), b.raw.flatten(1)
        temperature = self.log_temperature.detach().exp()
        with torch.no_grad():
            next_raw, log_prob = self.sample(b.next_obs)
            value = self.smallest(self.targets, b.next_obs, next_base + self.bound * next_raw) - temperature * log_prob
            goal = b.reward + self.cfg.gamma**b.decisions * (1 - b.terminated) * value
        x = torch.cat([b.obs, base + self.bound * raw], dim=-1)
        critic_loss = sum(((q(x).squeeze(-1) - goal) ** 2).mean() for q in self.critics)
        self.critic_opt.zero_grad()
        critic_loss.backward()  # pyright: ignore[reportAttributeAccessIssue]
        nn.utils.clip_grad_norm_(self.critic_params, self.cfg.max_grad_norm)
        self.critic_opt.step()

        raw, log_prob = self.sample(b.obs)
        q = self.smallest(self.critics, b.obs, base + self.bound * raw)
        actor_loss = (temperature * log_prob - q).mean()
        self.actor_opt.zero_grad()
        actor_loss.backward()
        nn.utils.clip_grad_norm_(self.actor.parameters(), self.cfg.max_grad_norm)
        self.actor_opt.step()

        target_entropy = self.cfg.target_entropy * self.action_size
        temperature_loss = -(self.log_temperature * (log_prob.detach() + target_entropy)).mean()
        self.temperature_opt.zero_grad()
        temperature_loss.backward()
        nn.utils.clip_grad_norm_([self.log_temperature], self.cfg.max_grad_norm)
        self.temperature_opt.step()

        with torch.no_grad():
            for q, target in zip(self.critics, self.targets, strict=True):
                for p, slow in zip(q.parameters(), target.parameters(), strict=True):
                    slow.mul_(1 - self.cfg.tau).add_(self.cfg.tau * p)
