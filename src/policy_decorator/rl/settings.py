"""Settings of Soft Actor-Critic, most of which TD3 shares."""

from dataclasses import dataclass

from policy_decorator.rl.ensemble import Value


@dataclass(frozen=True)
class SACConfig:
    """Defaults are the paper's Table 9, and the released code's where the paper is silent."""

    gamma: float = 0.97
    """Discount per decision."""
    tau: float = 0.01
    """Rate at which the target critic follows the critic."""
    lr: float = 1e-4
    """Learning rate of actor, critic and temperature."""
    temperature_lr: float | None = None
    """The temperature's, if it is to have one of its own."""
    batch_size: int = 1024
    """Decisions per gradient step."""
    actor_every: int = 1
    """Critic updates per actor and temperature update."""
    temperature: float = 1.0
    """Initial weight of the entropy; learned from there on."""
    target_entropy: float = -1.0
    """Entropy aimed at, per action dimension, of the unscaled residual."""
    entropy_in_backup: bool = True
    """Whether the critic's target counts the entropy still to come; where rewards are sparse it can drown them."""
    residual_penalty: float = 0.0
    """Weight of the squared residual, summed over its dimensions, in the actor's loss (0 in the paper)."""
    max_grad_norm: float = 50.0
    """Gradient norm at which actor and critics are clipped."""
    critic_subset: int | None = None
    """Critics, drawn at every update, whose smallest the target believes (arXiv:2101.05982); None: all, the paper."""
    actor_value: Value = "min"
    """What the actor climbs: the smallest of the critics (the paper) or their mean (REDQ; RLPD, arXiv:2302.02948)."""
