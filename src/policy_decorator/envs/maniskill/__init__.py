"""ManiSkill 3's tasks as the paper uses them: state observations, sparse success, 200 steps.

Source: Mu et al. 2021, Gu et al. 2023, Tao et al. 2024 (arXiv:2410.00425); paper Sec. 5.1, App. A.1, Table 2.
"""

from functools import partial

from policy_decorator.envs.maniskill import push_chair_tasks, turn_faucet_tasks
from policy_decorator.envs.maniskill.batched import BatchedSimulation
from policy_decorator.envs.maniskill.simulator import Simulated, make_env, why_not, why_not_on_gpu
from policy_decorator.envs.task import Images, Task
from policy_decorator.errors import lookup

MAX_STEPS = 200
"""Of the paper (Table 2); ManiSkill 3 registers 50 for StackCube and 100 for PegInsertionSide."""
CONTROL_HZ = 20.0

SIMULATED = {
    # Differs from the paper: the state is ManiSkill 3's, without the pose of the robot's base (7 constant numbers).
    # Differs from the paper: a cube is static below 1 cm/s and 0.5 rad/s (ManiSkill 3), not 1 mm/s and 0.01 rad/s
    # (ManiSkill 2): in today's PhysX a cube at rest on another trembles with more than that.
    "stack-cube": Simulated(
        env_id="StackCube-v1",
        obs_size=48,
        action_size=4,
        control_mode="pd_ee_delta_pos",
        success="the red cube lies on the green one, let go of and static, at that step",
        points={"gripper": (18, 19, 20), "red cube": (25, 26, 27), "green cube": (32, 33, 34)},
        state_beside_images=25,
        planned="StackCube-v1",
    ),
    "peg-insertion-side": Simulated(
        env_id="PegInsertionSideDepth-v1",
        obs_size=43,
        action_size=7,
        control_mode="pd_ee_delta_pose",
        success="the peg's head is in the hole, between 1.5 cm before and 7.5 cm behind its middle, at that step",
        points={"gripper": (18, 19, 20), "peg": (25, 26, 27), "hole": (35, 36, 37)},
        state_beside_images=25,
        module="policy_decorator.envs.maniskill.peg_insertion",
        objects_vary=True,
        planned="PegInsertionSide-v1",
    ),
    **turn_faucet_tasks.SIMULATED,
    **push_chair_tasks.SIMULATED,
}


def tasks() -> dict[str, Task]:
    """All of them, as "maniskill/<name>"; nothing is imported."""
    return {f"maniskill/{name}": _task(name, simulated) for name, simulated in SIMULATED.items()}


def _task(name: str, simulated: Simulated) -> Task:
    return Task(
        name=f"maniskill/{name}",
        obs_size=simulated.obs_size,
        action_size=simulated.action_size,
        max_steps=MAX_STEPS,
        control_hz=CONTROL_HZ,
        success=simulated.success,
        demos=_demos(name, simulated),
        make_env=partial(make_env, simulated),
        make_expert=simulated.make_expert,
        make_privileged_expert=simulated.make_privileged_expert,
        make_on_gpu=partial(BatchedSimulation, simulated),
        why_not_on_gpu=why_not_on_gpu,
        why_not=partial(_missing, simulated),
        images={"rgbd": _images(simulated)},
        demos_of=f"maniskill/{name}-source" if f"{name}-source" in SIMULATED else None,
        held_actions=simulated.held_actions,
        points=simulated.points,
    )


def _demos(name: str, simulated: Simulated) -> str:
    how = "ManiSkill's motion planning" if simulated.planned else "scripted expert, embedded"
    shown = f"{name}-source" if f"{name}-source" in SIMULATED else name
    return f"{how}: pidec demos maniskill/{shown}"


def _missing(simulated: Simulated) -> str | None:
    """What keeps it from running here, in one line."""
    return why_not() or (simulated.missing_assets and simulated.missing_assets())


def _images(simulated: Simulated) -> Images:
    height, width = simulated.camera_size
    return Images(
        simulated.cameras,
        height,
        width,
        depth=True,
        state_size=simulated.state_beside_images,
        make_env=partial(make_env, simulated, images=True),
        make_on_gpu=partial(BatchedSimulation, simulated, images=True),
    )


def simulated(task: Task) -> Simulated:
    """What ManiSkill simulates for `task`. Raises UserError if the task is not one of ManiSkill's."""
    return lookup(
        "ManiSkill task", task.name.partition(":")[0], {f"maniskill/{name}": s for name, s in SIMULATED.items()}
    )
