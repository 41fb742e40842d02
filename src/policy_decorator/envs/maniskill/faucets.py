"""Procedural faucets: seeded, articulated, each with a base, a post, a spout and one switch that turns.

A seed gives one faucet, always the same; x points away from the robot, z up, the origin is where it stands on the
table. Sizes are those to which ManiSkill scales the faucets of PartNet-Mobility: 30 cm at most.

On disk, per faucet: `mobility_cvx.urdf`, one convex mesh per part, and `info.json` with what ManiSkill wants to know
about a faucet of PartNet-Mobility (bbox, offset, scale, semantics).
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from policy_decorator.envs.maniskill.cache import cache_folder
from policy_decorator.errors import UserError

VERSION = 1
"""Part of the folder's name: to be raised with every change of what a seed gives."""

KINDS = ("lever", "side valve", "front valve", "wing knob")
"""Seed s gives kind s % 4. A lever lies on top of the post and turns about the vertical; a valve stands up beside
or before the post and falls to one side; a wing knob turns about the vertical on a stub of its own."""

# Differs from the paper: its faucets are meshes of PartNet-Mobility, which not everyone may download.
SPLITS: Mapping[str, tuple[int, ...]] = MappingProxyType({"source": tuple(range(10)), "target": tuple(range(100, 104))})
"""Seeds, as many as the paper has faucets: no target faucet is in a demonstration."""

URDF = """<?xml version="1.0"?>
<robot name="faucet">
  <link name="base"/>
  <link name="link_1">{body}</link>
  <joint name="joint_1" type="fixed"><parent link="base"/><child link="link_1"/></joint>
  <link name="link_0">{switch}</link>
  <joint name="joint_0" type="revolute">
    <parent link="link_1"/><child link="link_0"/>
    <origin xyz="{origin}"/><axis xyz="{axis}"/>
    <limit lower="0" upper="{upper}" effort="10" velocity="5"/>
  </joint>
</robot>
"""
PART = '<{tag} name="{name}"><origin xyz="0 0 0"/><geometry><mesh filename="parts/{name}.obj"/></geometry></{tag}>'


@dataclass(frozen=True)
class Faucet:
    """One faucet: convex trimesh meshes, those of the switch relative to a point on its hinge."""

    kind: str
    body: tuple[Any, ...]
    switch: tuple[Any, ...]
    origin: tuple[float, ...]
    """(3,) m, a point on the hinge."""
    axis: tuple[float, ...]
    """(3,) unit vector; the switch opens counter-clockwise about it."""
    upper: float
    """Range of the hinge in rad; it starts at 0."""


def write_all(seeds: Sequence[int], where: Path | None = None) -> dict[str, Path]:
    """The folders of these faucets by their ids ("procedural-7"), made where they are missing.

    Raises:
        UserError: the folder cannot be written.
    """
    where = where or cache_folder(f"faucets-{VERSION}")
    found = {f"procedural-{seed}": where / f"procedural-{seed}" for seed in seeds}
    try:
        for seed, path in zip(seeds, found.values(), strict=True):
            if not (path / "info.json").is_file():
                _write(make(seed), path)
    except OSError as error:
        raise UserError(
            f"The procedural faucets cannot be written to {where} ({error}). "
            "Set POLICY_DECORATOR_CACHE to a folder with room for a few hundred kilobytes."
        ) from error
    return found


def _write(faucet: Faucet, path: Path) -> None:
    """All or nothing, also where several processes write the same faucet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=path.parent))
    try:
        draft.chmod(0o755)
        (draft / "parts").mkdir()
        tags = {}
        for part in ("body", "switch"):
            names = [f"{part}_{i}" for i in range(len(getattr(faucet, part)))]
            for name, mesh in zip(names, getattr(faucet, part), strict=True):
                mesh.export(draft / "parts" / f"{name}.obj", include_normals=False)
            tags[part] = "".join(PART.format(tag=t, name=n) for n in names for t in ("visual", "collision"))
        numbers = {"origin": _text(faucet.origin), "axis": _text(faucet.axis), "upper": _text([faucet.upper])}
        (draft / "mobility_cvx.urdf").write_text(URDF.format(**tags, **numbers), encoding="utf-8")
        (draft / "info.json").write_text(json.dumps(_info(faucet)), encoding="utf-8")
        try:
            draft.rename(path)
        except OSError:
            if not (path / "info.json").is_file():  # else another process was faster, with the same faucet
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _info(faucet: Faucet) -> dict[str, Any]:
    vertices = np.concatenate([m.vertices for m in faucet.body] + [m.vertices + faucet.origin for m in faucet.switch])
    return {
        "kind": faucet.kind,
        "bbox": {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()},
        "offset": [0.0, 0.0, 0.0],
        "scale": 1.0,
        "semantics": [["link_0", "hinge", "switch"], ["link_1", "static", "faucet_base"]],
    }


def _text(numbers: Sequence[float]) -> str:
    return " ".join(f"{x:.6f}" for x in numbers)


def make(seed: int) -> Faucet:
    """The faucet of a seed; nothing is written."""
    rng = np.random.default_rng([VERSION, seed])
    kind = KINDS[seed % len(KINDS)]
    height, radius = rng.uniform(0.12, 0.19), rng.uniform(0.014, 0.022)  # of the post
    hand = rng.choice([-1.0, 1.0])  # which way it opens, and on which side what is not in the middle stands
    upper = rng.uniform(np.radians(60), np.radians(100))
    body = [*_plate(rng, radius), _rod((0, 0, 0), (0, 0, height), radius)]
    if kind == "lever":
        body += _spout(rng, rng.uniform(0.45, 0.7) * height, radius, yaw=rng.uniform(-1, 1), arched=False)
        return _lever(rng, body, height, radius, hand, upper)
    if kind == "wing knob":
        body += _spout(rng, height, radius, yaw=-hand * rng.uniform(0, 0.6), arched=bool(rng.integers(2)))
        return _knob(rng, body, height, radius, hand, upper)
    across = kind == "front valve"
    yaw = -hand * rng.uniform(1.0, 1.4) if across else rng.uniform(-0.4, 0.4)
    body += _spout(rng, rng.uniform(0.5, 0.7) * height, radius, yaw=yaw, arched=False)
    return _valve(rng, body, height, radius, hand, min(upper, np.radians(85)), across)


def _lever(
    rng: np.random.Generator, body: list[Any], height: float, radius: float, hand: float, upper: float
) -> Faucet:
    """On top of the post, about the vertical; the middle of its way is on the robot's side."""
    hub = 0.02 + 0.01 * rng.random()
    start = np.pi + hand * rng.uniform(-0.3, 0.9) - hand * upper / 2
    switch = [_rod((0, 0, 0), (0, 0, hub), 1.2 * radius), *_handle(rng, rng.uniform(0.07, 0.12), hub / 2)]
    switch = [_turned(part, start, (0, 0, 1)) for part in switch]
    return Faucet("lever", tuple(body), tuple(switch), (0.0, 0.0, height), (0.0, 0.0, hand), upper)


def _valve(
    rng: np.random.Generator, body: list[Any], height: float, radius: float, hand: float, upper: float, across: bool
) -> Faucet:
    """Upright on a horizontal hinge: beside the post, falling along x, or before it, falling along y."""
    out = np.array([-1.0, 0, 0]) if across else np.array([0, hand, 0.0])
    low, reach = rng.uniform(0.45, 0.7) * height, radius + rng.uniform(0.025, 0.045)
    origin = out * reach + (0, 0, low)
    body.append(_rod((0, 0, low), tuple(origin), 0.7 * radius))
    sense = rng.choice([-1.0, 1.0])
    axis = sense * np.abs(out)
    lean = rng.uniform(-0.1, 0.35)  # rad, away from where it falls to
    switch = [_rod(tuple(-0.005 * out), tuple(0.02 * out), 0.9 * radius)]
    for part in _handle(rng, rng.uniform(0.07, 0.11), 0.0):
        upright = _turned(part, -np.pi / 2, (0, 1, 0))
        facing = _turned(upright, np.pi / 2 if across else 0.0, (0, 0, 1))
        switch.append(_turned(_moved(facing, 0.01 * out), -lean, axis))
    kind = "front valve" if across else "side valve"
    return Faucet(kind, tuple(body), tuple(switch), tuple(origin), tuple(axis), upper)


def _knob(rng: np.random.Generator, body: list[Any], height: float, radius: float, hand: float, upper: float) -> Faucet:
    """Two or four wings about the vertical, on a stub beside the post."""
    beside = (rng.uniform(-0.04, 0.01), hand * rng.uniform(0.08, 0.11))
    top = rng.uniform(0.4, 0.65) * height
    body += [_rod((*beside, 0), (*beside, top), 0.9 * radius), _rod((0, 0, 0.012), (*beside, 0.012), 0.012)]
    wing, thick, tall = rng.uniform(0.04, 0.06), rng.uniform(0.01, 0.014), rng.uniform(0.014, 0.022)
    switch = [_rod((0, 0, 0), (0, 0, 0.02), 1.1 * radius)]
    start = rng.uniform(0, np.pi)
    turns = (start, start + np.pi / 2)[: rng.integers(1, 3)]
    switch += [_box((2 * wing, thick, tall), (0, 0, 0.01 + tall / 2), turn) for turn in turns]
    return Faucet("wing knob", tuple(body), tuple(switch), (*beside, top), (0.0, 0.0, rng.choice([-1.0, 1.0])), upper)


def _handle(rng: np.random.Generator, length: float, z: float) -> list[Any]:
    """What one pushes, along x from the hinge: a rod, a flat bar, a paddle, or a rod that bends upwards."""
    thick, rise = rng.uniform(0.006, 0.009), length * np.sin(rng.uniform(0, 0.4))
    end = (length, 0, z + rise)
    match rng.choice(["rod", "bar", "paddle", "bent"]):
        case "rod":
            return [_rod((0, 0, z), end, thick), _ball(end, 1.5 * thick)]
        case "bar":
            return [_box((length, 1.8 * thick, 2.2 * thick), (length / 2, 0, z), 0.0)]
        case "paddle":
            blade = (0.4 * length, 3.2 * thick, 1.6 * thick)
            return [_rod((0, 0, z), (0.7 * length, 0, z), thick), _box(blade, (0.8 * length, 0, z), 0.0)]
        case _:
            elbow = (0.6 * length, 0, z)
            return [_rod((0, 0, z), elbow, thick), _rod(elbow, (length, 0, z + 0.3 * length), thick)]


def _plate(rng: np.random.Generator, radius: float) -> list[Any]:
    thick = rng.uniform(0.008, 0.02)
    if rng.integers(2):
        return [_rod((0, 0, 0), (0, 0, thick), radius * rng.uniform(1.5, 2.2))]
    return [_box((rng.uniform(0.06, 0.09), rng.uniform(0.06, 0.16), thick), (0, 0, thick / 2), 0.0)]


def _spout(rng: np.random.Generator, z: float, radius: float, yaw: float, arched: bool) -> list[Any]:
    """Towards the robot and `yaw` rad off; straight and rising a little, or an arch from the top of the post."""
    length, thick = rng.uniform(0.09, 0.15), 0.75 * radius
    if arched:
        angles = np.linspace(np.pi, np.radians(rng.uniform(-30, 20)), 7)
        bow = np.stack([1 + np.cos(angles), 0 * angles, np.sin(angles)], axis=1) * length / 2 + (0, 0, z)
    else:
        bow = np.array([(0, 0, z), (length, 0, z + length * np.tan(rng.uniform(-0.1, 0.3)))])
        bow = np.vstack([bow, bow[-1] - (0, 0, rng.uniform(0.02, 0.04))])
    parts = [_rod(tuple(a), tuple(b), thick) for a, b in pairwise(bow)]
    return [_turned(part, np.pi + yaw, (0, 0, 1)) for part in parts]


def _rod(start: Sequence[float], end: Sequence[float], radius: float) -> Any:
    import trimesh

    return trimesh.creation.cylinder(radius, segment=[start, end], sections=16)


def _ball(centre: Sequence[float], radius: float) -> Any:
    import trimesh

    return _moved(trimesh.creation.icosphere(1, radius), centre)


def _box(size: Sequence[float], centre: Sequence[float], yaw: float) -> Any:
    import trimesh

    return _moved(_turned(trimesh.creation.box(size), yaw, (0, 0, 1)), centre)


def _turned(mesh: Any, angle: float, axis: Sequence[float]) -> Any:
    import trimesh

    return mesh.copy().apply_transform(trimesh.transformations.rotation_matrix(angle, axis))


def _moved(mesh: Any, by: Any) -> Any:
    return mesh.copy().apply_translation(by)
