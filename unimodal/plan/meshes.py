"""Meshes that divide a topology and a model, and which of them to try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from unimodal.errors import UsageError
from unimodal.experiment import Experiment
from unimodal.plan.topology import Topology
from unimodal.sharding import parameter_table

TRIED = 8  # each takes a compilation

Sizes = Mapping[str, int]


def dividing(experiment: Experiment, devices: int, *, sequence: int = 1) -> list[Sizes]:
    """All meshes over so many devices that divide the batches, and the heads and MLPs of every backbone."""
    found = []
    splits = [s for s in _divisors(devices) if s % sequence == 0]
    for inner in (s // sequence for s in splits):
        if not _divides_model(experiment, inner):
            continue
        outer = devices // (inner * sequence)
        if any(task.batch_size % (outer * experiment.optimizer.accumulate) for task in experiment.tasks):
            continue
        found += [dict(data=outer // f, fsdp=f, tensor=inner, sequence=sequence) for f in _divisors(outer)]
    return found


def promising(experiment: Experiment, topology: Topology, *, sequence: int = 1) -> list[Sizes]:
    """The meshes most worth trying, by what each would send; those whose state alone does not fit are left out."""
    sizes = [row["bytes"] for row in parameter_table(experiment.model, experiment.mesh)]
    parameters, capacity = sum(sizes), topology.chip.capacity
    found = dividing(experiment, len(topology.devices), sequence=sequence)
    # Parameters and two moments, as AdamW has them.
    room = [m for m in found if capacity is None or 3 * parameters / (m["fsdp"] * m["tensor"]) <= capacity]
    return sorted(room, key=lambda mesh: _sent(experiment, mesh, parameters))[:TRIED]


def check_mesh(experiment: Experiment, asked: Sizes, devices: int) -> None:
    """Raises UsageError, with meshes that do, unless the mesh `asked` for (-1: the rest) takes all of so many devices and
    divides the batches and the model."""
    fixed = math.prod(size for size in asked.values() if size != -1)
    whole = {axis: devices // max(fixed, 1) if size == -1 else size for axis, size in asked.items()}
    known = dividing(experiment, devices, sequence=max(1, whole["sequence"]))
    if whole not in known:
        given = ", ".join(f"{axis}={size}" for axis, size in asked.items() if size != 1) or "data=1"
        raise UsageError(
            f"mesh {given} does not divide {devices} devices, the batches and the model; these do: "
            f"{spell_some(known or dividing(experiment, devices))}"
        )


def spell(mesh: Sizes) -> str:
    """ "fsdp=8, tensor=4": the axes longer than 1."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1) or "data=1"


def spell_some(meshes: Sequence[Sizes], most: int = 8) -> str:
    """A few of the meshes in words, those with little tensor parallelism first."""
    listed = [spell(mesh) for mesh in sorted(meshes, key=lambda mesh: (mesh["tensor"], -mesh["fsdp"]))]
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ("; ".join(listed[:most]) + rest) if listed else "none"


def _divides_model(experiment: Experiment, tensor: int) -> bool:
    return all(not (c.heads % tensor or c.G % tensor or c.M % tensor) for c in experiment.backbones.values())


def _sent(experiment: Experiment, mesh: Sizes, parameters: float) -> float:
    """Bytes that a device sends in a step, roughly: parameters gathered twice and gradients scattered once over fsdp,
    gradients summed over data, four activations a layer summed over tensor."""
    fsdp, tensor = mesh["fsdp"], mesh["tensor"]
    total = 3 * parameters / tensor * (1 - 1 / fsdp) + 2 * parameters / (fsdp * tensor) * (1 - 1 / mesh["data"])
    for task in experiment.tasks:
        tokens = task.batch_size * experiment.tokens[task.name] / (mesh["data"] * fsdp * mesh["sequence"])
        layers = sum(c.depth * c.width for c in experiment.backbones.values())
        total += 4 * 2 * 2 * tokens * layers * (1 - 1 / tensor)
    return total


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
