"""Swivel chairs drawn from a seed: star base on casters, column, seat, back, sometimes armrests.

A `Chair` is numbers only; `build` turns one into an articulation of ManiSkill 3. Nothing is downloaded or written.
"""

from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import numpy as np

# Differs from the paper: these chairs are not PartNet-Mobility's, which are in partnet_chairs.py.
SOURCE = tuple(range(5))
TARGET = tuple(range(100, 103))
"""Seeds of the chairs: as many as in the paper, those of demonstrations and those that are new online."""

DENSITY = 200.0
"""kg/m3, with the friction coefficients below: ManiSkill2's values for all chairs."""
BODY_FRICTION, WHEEL_FRICTION = 0.1, 1.0
TRAIL = 0.02
"""Distance of a caster's axle behind its vertical axis, metres."""


@dataclass(frozen=True)
class Chair:
    """Geometry in metres. The chair faces +x; its frame's origin stands above the column at half the chair's height,
    as that of PartNet-Mobility does."""

    seat_height: float
    seat_width: float
    seat_depth: float
    seat_thickness: float
    back_height: float
    back_width: float
    back_thickness: float
    arm_height: float
    """Of the armrests above the seat; 0: none."""
    column_radius: float
    legs: int
    leg_length: float
    wheel_radius: float
    rest: tuple[float, ...]
    """Joint positions at the beginning of an episode: each caster points somewhere."""
    color: tuple[float, float, float]

    @property
    def height(self) -> float:
        return self.seat_height + self.seat_thickness / 2 + self.back_height

    @property
    def joints(self) -> tuple[str, ...]:
        """In the order of the state: the casters one after the other, then the seat."""
        casters = (f"{kind}_{i}" for i in range(self.legs) for kind in ("caster", "wheel"))
        return (*casters, "seat_swivel")


def sample(seed: int) -> Chair:
    """The chair with this seed."""
    rng = np.random.default_rng([seed, 20])
    legs = int(rng.integers(4, 7))
    casters = rng.uniform(-pi, pi, legs)
    return Chair(
        seat_height=rng.uniform(0.44, 0.54),
        seat_width=rng.uniform(0.40, 0.50),
        seat_depth=rng.uniform(0.40, 0.48),
        seat_thickness=rng.uniform(0.05, 0.09),
        back_height=rng.uniform(0.35, 0.60),
        back_width=rng.uniform(0.34, 0.46),
        back_thickness=rng.uniform(0.03, 0.05),
        arm_height=float(rng.choice([0.0, rng.uniform(0.18, 0.24)])),
        column_radius=rng.uniform(0.025, 0.04),
        legs=legs,
        leg_length=rng.uniform(0.27, 0.33),
        wheel_radius=rng.uniform(0.025, 0.035),
        rest=(*(x for angle in casters.tolist() for x in (angle, 0.0)), 0.0),
        color=tuple(rng.uniform(0.1, 0.8, 3).tolist()),
    )


@dataclass(frozen=True)
class InScene:
    """A chair of any family in one environment of a ManiSkill scene."""

    articulation: Any
    """mani_skill's `Articulation` of this chair alone."""
    joints: tuple[str, ...]
    """Its moving joints in the order of the state."""
    rest: tuple[float, ...]
    """Their positions at the beginning of an episode."""
    pose: tuple[float, ...]
    """Of the root at rest: position and quaternion."""
    seat: str
    """The link that is the seat."""
    forward: tuple[float, float, float]
    """Where the seat faces, in the frame of that link."""
    seat_joints: tuple[str, ...]
    """The joints between seat and support: stiffer than the casters."""


def build(scene: Any, seed: int, scene_idx: int) -> InScene:
    """The chair with this seed in one of the scene's environments, at rest on the ground plane."""
    chair = sample(seed)
    rest = (0.0, 0.0, chair.height / 2, 1.0, 0.0, 0.0, 0.0)
    articulation = _articulation(scene, chair, scene_idx, f"chair_{seed}-{scene_idx}")
    return InScene(articulation, chair.joints, chair.rest, rest, "seat", (1.0, 0.0, 0.0), ("seat_swivel",))


def _articulation(scene: Any, chair: Chair, scene_idx: int, name: str) -> Any:
    import sapien

    builder = scene.create_articulation_builder()
    builder.set_scene_idxs([scene_idx])
    builder.initial_pose = sapien.Pose([0, 0, chair.height / 2])
    materials = [sapien.physx.PhysxMaterial(f, f, 0) for f in (BODY_FRICTION, WHEEL_FRICTION)]
    base = builder.create_link_builder()
    base.set_name("base")
    _base(base, chair, materials[0])
    for i in range(chair.legs):
        _caster(builder, base, chair, i, materials[1])
    seat = builder.create_link_builder(base)
    seat.set_name("seat")
    _hinge(seat, "seat_swivel", (0, 0, chair.seat_height - chair.height / 2), "z")
    _seat(seat, chair, materials[0])
    return builder.build(name=name, fix_root_link=False)


def _base(link: Any, chair: Chair, material: Any) -> None:
    ground = -chair.height / 2
    hub = ground + 2 * chair.wheel_radius + 0.05
    top = ground + chair.seat_height - chair.seat_thickness / 2 - 0.02
    half = (0.0, 0.0, (top - hub) / 2)
    _box(link, chair, material, (0, 0, hub + half[2]), (chair.column_radius, chair.column_radius, half[2]), grey=True)
    for i in range(chair.legs):
        angle = 2 * pi * i / chair.legs
        middle = (cos(angle) * chair.leg_length / 2, sin(angle) * chair.leg_length / 2, hub)
        _box(link, chair, material, middle, (chair.leg_length / 2, 0.02, 0.015), angle, grey=True)


def _caster(builder: Any, base: Any, chair: Chair, i: int, material: Any) -> None:
    """A fork that turns about a vertical axis and, behind it, a ball that rolls about the fork's axle."""
    angle = 2 * pi * i / chair.legs
    axle = chair.wheel_radius - chair.height / 2
    fork = builder.create_link_builder(base)
    fork.set_name(f"caster_link_{i}")
    _hinge(fork, f"caster_{i}", (cos(angle) * chair.leg_length, sin(angle) * chair.leg_length, axle), "z")
    fork.set_mass_and_inertia(0.1, _pose((0, 0, 0)), (1e-4, 1e-4, 1e-4))
    fork.add_box_visual(_pose((-TRAIL / 2, 0, chair.wheel_radius + 0.01)), (0.02, 0.012, 0.012), (0.1, 0.1, 0.1))
    wheel = builder.create_link_builder(fork)
    wheel.set_name(f"wheel_link_{i}")
    _hinge(wheel, f"wheel_{i}", (-TRAIL, 0, 0), "y")
    wheel.add_sphere_collision(_pose((0, 0, 0)), chair.wheel_radius, material, density=1000)
    wheel.add_sphere_visual(_pose((0, 0, 0)), chair.wheel_radius, (0.1, 0.1, 0.1))


def _seat(link: Any, chair: Chair, material: Any) -> None:
    """In the seat's frame: origin in the middle of the slab, x forward."""
    w, d, t = chair.seat_width / 2, chair.seat_depth / 2, chair.seat_thickness / 2
    _box(link, chair, material, (0, 0, 0), (d, w, t))
    bt, bh = chair.back_thickness / 2, chair.back_height / 2
    _box(link, chair, material, (-d + bt, 0, t + bh), (bt, chair.back_width / 2, bh))
    if chair.arm_height:
        for side in (-1, 1):
            y, half = side * (w - 0.02), chair.arm_height / 2
            _box(link, chair, material, (0, y, t + half), (0.02, 0.015, half), grey=True)
            _box(link, chair, material, (0, y, t + chair.arm_height), (0.12, 0.025, 0.012), grey=True)


def _box(
    link: Any,
    chair: Chair,
    material: Any,
    center: tuple[float, float, float],
    half: tuple[float, float, float],
    yaw: float = 0.0,
    grey: bool = False,
) -> None:
    pose = _pose(center, (cos(yaw / 2), 0, 0, sin(yaw / 2)))
    link.add_box_collision(pose, half, material, DENSITY)
    link.add_box_visual(pose, half, (0.25, 0.25, 0.25) if grey else chair.color)


def _hinge(link: Any, name: str, at: tuple[float, float, float], axis: str) -> None:
    """An endless hinge at a point of the parent; SAPIEN's hinges turn about the x axis of their frame."""
    turn = {"z": (np.sqrt(0.5), 0, -np.sqrt(0.5), 0), "y": (np.sqrt(0.5), 0, 0, np.sqrt(0.5))}[axis]
    link.set_joint_name(name)
    link.set_joint_properties("revolute", [[-np.inf, np.inf]], _pose(at, turn), _pose((0, 0, 0), turn))


def _pose(p: tuple[float, float, float], q: tuple[float, float, float, float] = (1, 0, 0, 0)) -> Any:
    import sapien

    return sapien.Pose(p, q)
