"""The four tasks of PushChair: the paper's chairs, which must be downloaded, and procedural ones, in two sets each.

As in the paper, demonstrations are made with the source chairs and the policy is refined on the target chairs.
"""

from collections.abc import Sequence
from functools import partial

from policy_decorator.envs.maniskill import partnet
from policy_decorator.envs.maniskill.push_chair_expert import make_expert
from policy_decorator.envs.maniskill.simulator import Simulated


def _simulated(env_id: str, models: Sequence[str] = ()) -> Simulated:
    """`models` of PartNet-Mobility."""
    return Simulated(
        env_id=env_id,
        obs_size=131,
        action_size=20,
        control_mode="base_pd_joint_vel_arm_pd_joint_vel",
        success="the chair is within 15 cm of the target, upright within 9 degrees, and static, at that step",
        points={"chair": (44, 45, 46), "right hand": (107, 108, 109), "left hand": (113, 114, 115)},
        state_beside_images=65,
        cameras=("overhead_camera_0", "overhead_camera_1", "overhead_camera_2"),
        camera_size=(50, 125),
        module="policy_decorator.envs.maniskill.push_chair",
        objects_vary=True,
        held_actions=(11, 19),  # both grippers; the rest is velocities
        make_expert=make_expert,
        missing_assets=partial(partnet.missing, partnet.CHAIRS, models),
    )


SIMULATED = {
    "push-chair-source": _simulated("PushChairSource-v2", partnet.CHAIRS.source),
    "push-chair": _simulated("PushChair-v2", partnet.CHAIRS.target),
    "push-procedural-chair-source": _simulated("PushProceduralChairSource-v1"),
    "push-procedural-chair": _simulated("PushProceduralChair-v1"),
}
"""`maniskill/<name>` -> what is simulated."""
