"""PegInsertionSide with the paper's own correction: a peg that was pushed through the hole is not inserted.

Importing this module imports ManiSkill and registers the environment with it.
"""

from typing import Any

import torch
from mani_skill.envs.tasks import PegInsertionSideEnv
from mani_skill.utils.registration import register_env

from policy_decorator.envs.maniskill.rebuilt import Rebuilt

DEEPEST = 0.075
"""Metres behind the middle of the hole, up to which the head counts as inserted (the paper's PegInsertionSide-v2)."""


@register_env("PegInsertionSideDepth-v1", max_episode_steps=100)
class PegInsertionSideDepth(Rebuilt, PegInsertionSideEnv):
    """ManiSkill's own environment asks only for how far the head is in at least."""

    def evaluate(self) -> dict[str, torch.Tensor]:
        told: dict[str, Any] = super().evaluate()
        return told | {"success": told["success"] & (told["peg_head_pos_at_hole"][:, 0] <= DEEPEST)}
