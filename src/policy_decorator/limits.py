"""Numbers of a run that are out of range, found before anything is spent on them."""

import math
from collections.abc import Callable

from policy_decorator.config import RefineConfig, flat
from policy_decorator.errors import UserError

FROM_ONE = "envs eval_episodes test_episodes replay_capacity max_steps total_steps steps_per_round log_every"
FROM_ONE += " opening_steps eval_every save_every n_step noise_hold width depth critics batch_size actor_every threads"
FROM_ONE += " critic_subset demo_share_steps select_samples rollout epochs minibatches step_back"
FROM_ONE += " success_window tuned_steps cql_samples backup_samples most_weight value_epochs value_batch"
FROM_ONE += " conjugate_gradients d_width d_depth d_batch d_steps discriminator_every compared trunk imitation_batch"
FROM_ONE += " lora_rank lora_alpha action_steps"
FROM_ZERO = "seed residual_penalty workers horizon warmup_steps updates_per_step temperature max_grad_norm"
FROM_ZERO += " exploration_std smoothing_std smoothing_limit entropy_weight critic_rounds offline_updates"
FROM_ZERO += " cql_weight advantage_sharpness demo_weight damping gradient_penalty imitation_weight"
FROM_ZERO += " critic_first base_steps"
ABOVE_ZERO = "bound bound_share lr tau initial_std clip target_kl sampling_std density_std noise_limit clip_smallest"
ABOVE_ZERO += " clip_growth critic_lr reward_limit gamma_denoise cql_temperature advantage_temperature"
ABOVE_ZERO += " normalized_step cloning_lr"
ABOVE_ZERO += " d_lr begin_std action_lr action_grad_norm temperature_lr"
SHARES = "gamma success_tolerance gae_lambda demo_share demo_share_end gamma_denoise scale_gamma expectile demo_decay"

LARGEST_BOUND = 2.0
"""Actions lie in [-1, 1]: a correction of 2 leads from any of them to any other."""


def check_numbers(config: RefineConfig, spelled: Callable[[str], str] = str) -> None:
    """Raises UserError for the first setting that cannot be meant; `spelled` is how its user writes a name."""
    values = dict(flat(config))
    rules = (
        (FROM_ONE, "at least 1", lambda x: x >= 1),
        (FROM_ONE, "a whole number", lambda x: x == int(x)),
        (FROM_ZERO, "at least 0", lambda x: x >= 0),
        (ABOVE_ZERO, "above 0", lambda x: x > 0),
        (SHARES, "in [0, 1]", lambda x: 0 <= x <= 1),
    )
    for names, rule, holds in rules:
        for name in names.split():
            value = values.get(name)
            if value is None or value in ("auto", "tolerance"):
                continue
            if not isinstance(value, int | float) or not (math.isfinite(value) and holds(value)):
                raise UserError(f"{spelled(name)} must be {rule}, got {value}.")
    if values.get("bound") not in (None, "auto", "tolerance") and values["bound"] > LARGEST_BOUND:
        raise UserError(
            f"{spelled('bound')} must be at most {LARGEST_BOUND}, got {values['bound']}: actions lie in [-1, 1], and a "
            "correction of 2 leads from any of them to any other."
        )
    train = config.train
    if train.total_steps <= train.warmup_steps:
        raise UserError(
            f"{spelled('total_steps')} {train.total_steps} must be more than {spelled('warmup_steps')} "
            f"{train.warmup_steps}: nothing is learned during the warm-up."
        )
