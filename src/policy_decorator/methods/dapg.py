"""DAPG (arXiv:1709.10087; paper Table 1): behaviour cloning, then a natural policy gradient that keeps on imitating.

Learns from whole rollouts of the policy as it is, so it needs many environments or many steps. Differs from the
original: networks are those of all methods here instead of two layers of 32 tanh units, the value function is a network
with the same learning rate as elsewhere, and a round is `rollout` decisions of every environment, not 200 episodes.
"""

from dataclasses import dataclass, field, replace

from policy_decorator.errors import UserError
from policy_decorator.methods.alone import Alone, Takeover, collector_alone
from policy_decorator.methods.offline import FromDemonstrations, imitator, shown_to, source_of, value_of
from policy_decorator.methods.on_policy import OnPolicyRun
from policy_decorator.methods.problem import Offline, Problem, Run
from policy_decorator.rl.dapg import DAPG, Cloning, DAPGConfig
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.ppo import PPOConfig, Rollouts
from policy_decorator.rl.replay import Replay


@dataclass(frozen=True)
class Config(FromDemonstrations):
    """Settings of DAPG."""

    BATCHES = False
    OWN = (*FromDemonstrations.OWN, "n_step", "noise_hold", "standardize_obs")

    offline_updates: int = 1_000
    """Gradient steps of behaviour cloning, in batches of `value_batch` (the original: 5 passes over 25 demonstrations
    in batches of 32, and a deviation of that of their actions)."""
    standardize_obs: bool = True
    """Standardise what the networks see with the demonstrations' statistics (the original's whitening)."""
    dapg: DAPGConfig = field(default_factory=DAPGConfig)
    """Settings of its update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_step != 1 or self.noise_hold != 1:
            raise UserError("DAPG learns from what its policy does by itself, one decision after the other: leave out "
                            "n_step and noise_hold.")  # fmt: skip
        if (self.mix, self.demo_share, self.demo_share_end) != ("share", FromDemonstrations.demo_share, None):
            raise UserError("In DAPG demonstrations count by demo_weight: leave out mix and demo_share.")
        if min(self.dapg.rollout, self.dapg.value_epochs, self.dapg.value_batch, self.dapg.conjugate_gradients) < 1:
            raise UserError("rollout, value_epochs, value_batch and conjugate_gradients must be at least 1.")
        if not (self.dapg.demo_weight >= 0 and 0 <= self.dapg.demo_decay <= 1 and self.dapg.normalized_step > 0):
            raise UserError("demo_weight must be at least 0, demo_decay in [0, 1] and normalized_step above 0.")

    @property
    def on_policy(self) -> bool:
        return True


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures, a warm-up in which something else would act."""
    if p.warmup_steps and not cfg.offline_updates:
        raise UserError("DAPG cannot learn from random actions: give --warmup-steps 0, or some --offline-updates.")
    demos = source_of(cfg, shown_to("dapg", cfg, p))
    shown = demos.data if cfg.dapg.demo_weight else None
    actor = imitator(cfg, p, clamps=False)
    value = value_of(cfg, p, replace(cfg.nets, critic_layer_norm=False))
    ppo = PPOConfig(rollout=cfg.dapg.rollout, gae_lambda=cfg.dapg.gae_lambda)
    learner = DAPG(actor, value, Takeover(), cfg.sac, ppo, shown=shown, dapg=cfg.dapg)
    offline = None
    if cfg.offline_updates:
        offline = Offline(cfg.offline_updates, Cloning(learner), demos, cfg.dapg.value_batch)
    replay = Replay(0)
    return OnPolicyRun(
        collector=collector_alone(cfg, p),
        learner=learner,
        explorer=Explorer(actor),
        replay=replay,
        intake=Rollouts(cfg.dapg.rollout),
        data=replay,
        monitor=Monitor(),
        policy=Alone(p.base, actor, Takeover()),
        offline=offline,
    )
