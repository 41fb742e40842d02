"""DPPO (arXiv:2409.00588; paper App. C.1): the Diffusion Policy itself is tuned, by PPO on its last denoising steps.

    decision = K - K' steps of the policy as it was, then K' steps of the policy as it is, each a Gaussian action
    reward   = success in the chunk, divided by the deviation of the running return

In training every denoising step is noisy. What is evaluated, kept and saved is a Diffusion Policy as any other, which
acts as the base does: by DDIM with eta 0, or by DDPM. Its first K - K' steps are still the base's network.
"""

from dataclasses import dataclass, field

from policy_decorator.methods.finetuned import diffusion_of
from policy_decorator.methods.on_policy import OnPolicyConfig, check_tuning, tuning, value_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.denoising import Denoising
from policy_decorator.rl.dppo import DPPO, Chains, DPPOConfig
from policy_decorator.rl.ppo import PPOConfig
from policy_decorator.rl.sac import SACConfig


@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """Settings of DPPO. Defaults are those of its authors for Square, but for gradients, which they do not clip."""

    sac: SACConfig = field(default_factory=lambda: SACConfig(gamma=0.999, lr=1e-4))
    """Read for gamma (per chunk), the learning rate of the policy, and the gradient norm of policy and value."""
    ppo: PPOConfig = field(
        default_factory=lambda: PPOConfig(rollout=400, epochs=10, minibatches=20, clip=0.01, target_kl=1.0)
    )
    """Settings of ppo; clip is the last denoising step's."""
    dppo: DPPOConfig = field(default_factory=DPPOConfig)
    """Settings of the denoising steps, and of what else DPPO adds to ppo."""


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: pictures, a warm-up, a base that is no Diffusion Policy or is asked action by action."""
    check_tuning("dppo", p)
    policy = diffusion_of("dppo", p.base).tunable(cfg.dppo.tuned_steps)
    denoising = Denoising(policy, p.obs_size, cfg.dppo).to(p.device)
    learner = DPPO(denoising, value_of(cfg, p), cfg.sac, cfg.ppo, cfg.dppo)
    return tuning(cfg, p, learner, denoising, Chains(cfg.ppo.rollout, denoising), policy)
