"""The four tasks of TurnFaucet: the paper's faucets, which must be downloaded, and procedural ones, in two sets each.

As in the paper, demonstrations are made with the source faucets and the policy is refined on the target faucets.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from policy_decorator.envs.maniskill import partnet
from policy_decorator.envs.maniskill.simulator import Simulated
from policy_decorator.envs.task import Expert


def _turning(env: Any) -> Expert:
    from policy_decorator.envs.maniskill.turn_faucet_expert import make_expert  # plans with what ManiSkill installs

    return make_expert(env)


def _simulated(env_id: str, models: Sequence[str] = ()) -> Simulated:
    """`models` of PartNet-Mobility."""
    return Simulated(
        env_id=env_id,
        obs_size=43,
        action_size=7,
        control_mode="pd_ee_delta_pose",
        success="the switch has passed 90 % of its range, at that step",
        points={"gripper": (25, 26, 27), "switch": (39, 40, 41)},
        state_beside_images=42,  # all but the angle left, as in the paper: it must say which switch
        module="policy_decorator.envs.maniskill.turn_faucet",
        objects_vary=True,
        make_privileged_expert=_turning,
        missing_assets=partial(partnet.missing, partnet.FAUCETS, models),
    )


SIMULATED = {
    "turn-faucet-source": _simulated("TurnFaucetSource-v1", partnet.FAUCETS.source),
    "turn-faucet": _simulated("TurnFaucetTarget-v1", partnet.FAUCETS.target),
    "turn-procedural-faucet-source": _simulated("TurnProceduralFaucetSource-v1"),
    "turn-procedural-faucet": _simulated("TurnProceduralFaucetTarget-v1"),
}
"""`maniskill/<name>` -> what is simulated."""
