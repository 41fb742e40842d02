"""Conservative and calibrated Q-learning as one term beside SAC's critic loss (arXiv:2006.04779, 2303.05479).

    L = SAC's + w * (T log sum_i exp(Q(s, a_i) / T - log p(a_i)) - Q(s, a))

a_i are N uniform actions, N of the policy at s and N of the policy at s', all valued at s; p is the density each was
drawn with (the importance sampling of CQL(H), App. F). Cal-QL reads max(Q, R) for the policy's, where R is the data's
return from s on: below what was really reached, nothing is pushed down any further. Uniform actions are not calibrated
(released code). Differs from the released code: at T other than 1 it divides log p by T too, and then the sum is no
longer an estimate of the integral of exp(Q / T).
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from policy_decorator.rl.bellman import bootstrapped
from policy_decorator.rl.demonstrations import Demonstrated, transitions
from policy_decorator.rl.ensemble import smallest
from policy_decorator.rl.sac import SAC
from policy_decorator.types import Transition

ORIGINAL_SPREAD = 505.0
"""Of the released code's values on Adroit: rewards of -5 at every step and 5 at success give Q = -500 + 505 gamma^T."""


def spread_of(gamma: float, reward_shift: float, *, ends: bool) -> float:
    """From the value of an episode that fails for ever to the highest there is, where success `ends` it or does not.

    Rewards are success + `reward_shift`: of 0 and 1, 1; of -1 and 0, 1 / (1 - gamma), also where episodes go on.
    """
    least = reward_shift / (1 - gamma)
    return 1 + reward_shift - least if ends else 1 / (1 - gamma)


@dataclass(frozen=True)
class CQLConfig:
    """Defaults are Cal-QL's released code's on Adroit; auto: its number there, in the scale of this run's values."""

    cql_weight: float | Literal["auto"] = "auto"
    """w: weight of the conservative term; auto: 1 where values are spread over 505."""
    cql_samples: int = 10
    """N: actions of each of the three kinds."""
    cql_temperature: float | Literal["auto"] = "auto"
    """T of the log-sum-exp; auto: likewise."""
    cql_least_gap: float | None = None
    """Below this the difference of the two counts as this and has no gradient (-200 in CORL); None: never."""
    backup_samples: int = 10
    """Next actions whose best value the target believes; 1: SAC's target, which here never counts the entropy."""


class Returning(NamedTuple):
    """A `Transition` and the return from it on: the reference of Cal-QL."""

    obs: Tensor
    raw: Tensor
    base: Tensor
    reward: Tensor
    terminated: Tensor
    decisions: Tensor
    next_obs: Tensor
    next_base: Tensor
    reference: Tensor  # (B,) sum_k gamma^k r_k to the end of the episode


@dataclass
class Conservative(SAC):
    """SAC whose critics doubt what the data do not show. Batches are `Returning` where it is `calibrated`."""

    cql: CQLConfig = field(default_factory=CQLConfig, kw_only=True)
    calibrated: bool = field(default=True, kw_only=True)
    """True: Cal-QL; False: CQL."""
    spread: float = field(default=ORIGINAL_SPREAD, kw_only=True)
    """Of the values (`spread_of`)."""

    @property
    def gap_weight(self) -> float:
        """w."""
        return self._scaled(self.cql.cql_weight)

    @property
    def gap_temperature(self) -> float:
        """T."""
        return self._scaled(self.cql.cql_temperature)

    def _scaled(self, given: float | Literal["auto"]) -> float:
        return self.spread / ORIGINAL_SPREAD if given == "auto" else given

    def samples(self, obs: Tensor, base: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """n of the actor's raw actions (n, B, Ta, Da) and their log-probabilities (n, B), of one forward pass."""
        seen = self.composition.actor_input(obs, base)
        noise = as_any(self.actor).fresh_noise(seen.repeat(n, 1)).unflatten(0, (n, -1))
        return self.actor(seen, noise)

    @torch.no_grad()
    def goal(self, b: Transition) -> Tensor:
        """(B,): the best of `backup_samples` next actions is believed; no entropy is counted (released code)."""
        n = self.cql.backup_samples
        raw, _ = self.samples(b.next_obs, b.next_base, n)
        action = self.composition.critic_action(b.next_base.repeat(n, 1, 1), raw.flatten(0, 1))
        value = smallest(self.target(b.next_obs.repeat(n, 1), action), self.cfg.critic_subset).view(n, -1)
        return bootstrapped(b, self.cfg.gamma, value.max(dim=0).values)

    @torch.no_grad()
    def proposals(self, b: Transition) -> tuple[Tensor, Tensor]:
        """Raw actions (3N, B, Ta, Da) and the logarithm of the density each was drawn with (3N, B)."""
        n, size = self.cql.cql_samples, len(b.reward)
        uniform = torch.rand(n, *b.raw.shape, device=b.raw.device) * 2 - 1
        kinds = [(uniform, torch.full((n, size), -self.action_size * math.log(2), device=b.raw.device))]
        for obs, base in ((b.obs, b.base), (b.next_obs, b.next_base)):
            raw, log_prob = self.samples(obs, base, n)
            kinds.append((raw, log_prob + getattr(self.actor, "log_volume", 0.0)))
        raw, log_density = zip(*kinds, strict=True)
        return torch.cat(raw), torch.cat(log_density)

    def gap(self, q: Tensor, proposed: Tensor, log_density: Tensor, reference: Tensor | None) -> Tensor:
        """(n_critics, B), (n_critics, 3N, B), (3N, B), (B,) -> (n_critics, B): how far the proposed are above the data.

        `reference` is the least that the policy's actions, the last two thirds, count as; None calibrates nothing.
        """
        if reference is not None:
            n = proposed.shape[1] // 3
            proposed = torch.cat([proposed[:, :n], torch.maximum(proposed[:, n:], reference)], dim=1)
        t = self.gap_temperature
        gap = t * torch.logsumexp(proposed / t - log_density, dim=1) - q
        return gap if self.cql.cql_least_gap is None else gap.clamp(min=self.cql.cql_least_gap)

    def critic_loss(self, b: Transition) -> tuple[Tensor, Tensor]:
        """SAC's and the conservative term; also returns Q (n_critics, B) of the data."""
        goal, (raw, log_density) = self.goal(b), self.proposals(b)
        n = 1 + len(raw)
        raw = torch.cat([b.raw[None], raw]).flatten(0, 1)
        action = self.composition.critic_action(b.base.repeat(n, 1, 1), raw)
        values = self.critic(b.obs.repeat(n, 1), action).unflatten(1, (n, -1))  # (n_critics, 1 + 3N, B)
        q, batch = values[:, 0], as_any(b)
        gap = self.gap(q, values[:, 1:], log_density, batch.reference if self.calibrated else None)
        return (((q - goal) ** 2) + self.gap_weight * gap).mean(dim=1).sum(), q.detach()

    def step(self, b: Transition, with_actor: bool) -> dict[str, Tensor]:
        """As SAC's; where it is calibrated, the mean reference is a metric beside the mean Q."""
        metrics = super().step(b, with_actor)
        return metrics | ({"q/reference": as_any(b).reference.mean()} if self.calibrated else {})


def as_any(x: Any) -> Any:
    """A batch that may have more columns than a `Transition`; an actor whose noise is given."""
    return x


def sharing(learner: SAC, other: SAC) -> None:
    """Let `learner` go on with all that `other` learns: networks, targets, temperature and the optimisers' moments."""
    names = ("actor", "critic", "target", "log_temperature", "critic_opt", "actor_opt", "temperature_opt")
    vars(learner).update({name: vars(other)[name] for name in names})


def endless(reward: Tensor, terminated: Tensor, gamma: float) -> Tensor:
    """(B,) returns from an episode's last decision on: behind what is no termination its reward is paid for ever.

    So an episode that failed throughout is worth reward / (1 - gamma) from its first decision on (released code).
    """
    return torch.where(terminated > 0, reward, reward / (1 - gamma))


def references(d: Demonstrated, gamma: float, reward_shift: float) -> Tensor:
    """(N,) the return from every row of the demonstrations on."""
    reward = d.success.float() + reward_shift
    out, ends = torch.empty_like(reward), d.lengths.cumsum(0).tolist()
    solved = (d.success & d.ends_at_success).float()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        out[end - 1] = endless(reward[end - 1], solved[end - 1], gamma)
        for k in range(end - 2, start - 1, -1):
            out[k] = reward[k] + gamma * out[k + 1]
    return out


def returning(d: Demonstrated, *, n_step: int, gamma: float, reward_shift: float) -> Returning:
    """The demonstrations' transitions, in which the actor acts alone, and their references."""
    how: dict[str, Any] = {"n_step": n_step, "gamma": gamma, "reward_shift": reward_shift}
    batch = transitions(d, 1.0, **how)
    rows = transitions(_numbered(d), 1.0, **how).obs
    return Returning(*batch, reference=references(d, gamma, reward_shift)[rows])


def _numbered(d: Demonstrated) -> Demonstrated:
    number = torch.arange(len(d.action), device=d.action.device)
    return Demonstrated(number, d.action, d.base, d.success, d.lengths, d.ends_at_success)


class Hindsight:
    """Holds decisions back until their episode has ended, because only then is their return known."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.steps: list[tuple[Transition, Tensor]] = []  # oldest first, with (B,) bool on the CPU: still held back

    def push(self, t: Transition, done: Tensor) -> Returning | None:
        """Take one decision, `done` (B,) bool on the CPU where its episode ended; return what is now complete."""
        self.steps.append((t, torch.ones_like(done)))
        if not done.any():
            return None
        value, complete = endless(t.reward, t.terminated, self.gamma), []
        for k in range(len(self.steps) - 1, -1, -1):
            step, held = self.steps[k]
            value = value if k == len(self.steps) - 1 else step.reward + self.gamma * value
            rows = (held & done).nonzero()[:, 0].to(value.device)
            complete.append(Returning(*(x[rows] for x in step), reference=value[rows]))
            self.steps[k] = step, held & ~done
        while self.steps and not self.steps[0][1].any():
            self.steps.pop(0)
        return Returning(*(torch.cat(xs) for xs in zip(*reversed(complete), strict=True)))

    def state(self) -> list[Any]:
        return [(*t, held) for t, held in self.steps]

    def restore(self, state: list[Any]) -> None:
        self.steps = [(Transition(*columns), held.cpu()) for *columns, held in state]
