"""A reward that is learned by telling the demonstrations from the policy's own behaviour (GAIL, arXiv:1606.03476).

    D(o, a) = logit that (o, a) was demonstrated;   loss = softplus(-D(demonstrated)) + softplus(D(own)) + penalty
    reward = D = log d - log(1 - d),   d = sigmoid(D)                                         (AIRL's, arXiv:1710.11248)

-log(1 - d) is never negative and pays for staying alive, log d never positive and pays for dying: where episodes end at
success either is wrong about it. Their sum is neither.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from policy_decorator.errors import UserError
from policy_decorator.rl.descent import Descent
from policy_decorator.rl.nets import Standardize
from policy_decorator.rl.stacked import StackedMLP


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The paper names no settings (App. D.4): those of common implementations, and the gradient penalty of DAC."""

    d_width: int = 256
    """Units per hidden layer."""
    d_depth: int = 2
    """Hidden layers."""
    d_lr: float = 3e-4
    """Learning rate."""
    d_batch: int = 256
    """Decisions of either kind per gradient step."""
    d_steps: int = 10
    """Gradient steps per round."""
    gradient_penalty: float = 10.0
    """Weight of (|grad D| - 1)^2 between demonstrated and own decisions (arXiv:1809.02925)."""
    reward: Literal["airl", "gail"] = "airl"
    """airl: log d - log(1 - d); gail: -log(1 - d)."""

    def __post_init__(self) -> None:
        if min(self.d_width, self.d_depth, self.d_batch, self.d_steps) < 1:
            raise UserError("d_width, d_depth, d_batch and d_steps must be at least 1.")
        if self.d_lr <= 0 or self.gradient_penalty < 0:
            raise UserError("d_lr must be above 0 and gradient_penalty at least 0.")


@dataclass
class Discriminator:
    """D, and how it learns."""

    obs_size: int
    action_size: int
    cfg: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        sizes = (self.obs_size + self.action_size, *(self.cfg.d_width,) * self.cfg.d_depth, 1)
        self.standardize = Standardize(self.obs_size).to(self.device)
        self.net = StackedMLP(1, sizes, 1.0).to(self.device)
        self.optimizer = Descent(self.net.parameters(), self.cfg.d_lr, 10.0)

    def pair(self, obs: Tensor, action: Tensor) -> Tensor:
        """(N, Do), (N, Ta, Da) -> (N, Do + Ta * Da), the observations standardised."""
        return torch.cat([self.standardize(obs), action.flatten(1)], dim=-1)

    def logit(self, pairs: Tensor) -> Tensor:
        """(N, *) -> (N,)."""
        return self.net(pairs)[0, :, 0]

    @torch.no_grad()
    def rewards(self, obs: Tensor, action: Tensor) -> Tensor:
        """(N,)."""
        logit = self.logit(self.pair(obs, action))
        return logit if self.cfg.reward == "airl" else F.softplus(logit)

    def loss(self, demonstrated: Tensor, own: Tensor, mix: Tensor) -> Tensor:
        """Of pairs (N, *) each; `mix` (N, 1) in [0, 1] says where between them the gradient is looked at."""
        telling = F.softplus(-self.logit(demonstrated)).mean() + F.softplus(self.logit(own)).mean()
        between = (mix * demonstrated + (1 - mix) * own).requires_grad_()
        (slope,) = torch.autograd.grad(self.logit(between).sum(), between, create_graph=True)
        return telling + self.cfg.gradient_penalty * ((slope.norm(dim=-1) - 1) ** 2).mean()

    def learn(self, demonstrated: Tensor, own: Tensor) -> dict[str, Tensor]:
        """A round on batches drawn from pairs (M, *) and (N, *); `gail/told_apart` is of another such batch."""
        loss, n = torch.zeros(()), self.cfg.d_batch

        def drawn() -> tuple[Tensor, Tensor]:
            theirs, ours = (x[torch.randint(len(x), (n,), device=x.device)] for x in (demonstrated, own))
            return theirs, ours

        for _ in range(self.cfg.d_steps):
            loss = self.loss(*drawn(), torch.rand(n, 1, device=own.device))
            self.optimizer.down(loss)
        with torch.no_grad():
            theirs, ours = drawn()
            right = (self.logit(theirs) > 0).float().mean() + (self.logit(ours) < 0).float().mean()
        return {"loss/discriminator": loss.detach(), "gail/told_apart": right / 2}

    def state(self) -> dict[str, Any]:
        """Network, statistics and optimiser."""
        return {name: getattr(self, name).state_dict() for name in ("net", "standardize", "optimizer")}

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)
