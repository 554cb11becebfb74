"""The command: config and topology → plans, what is printed of them, and the JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unimodal.configuration import typed
from unimodal.errors import UsageError
from unimodal.experiment import Experiment, build
from unimodal.plan.compile import Plan, plan, step_sets
from unimodal.plan.meshes import dividing, promising, spell, spell_some
from unimodal.plan.show import comparison, report, verdict
from unimodal.plan.topology import FLAT, FORMS, Topology, exists, open_topology
from unimodal.settings import MeshConfig
from unimodal.sharding import make_mesh, shardings
from unimodal.training.loop import check_batches

Config = Mapping[str, Any]
Say = Callable[[str], None]


def run_plan(
    config: Config,
    task_class: Callable[[str], type[Any]],
    *,
    topology: str | None,
    mesh: str | None = None,
    json_path: Path | None = None,
    say: Say = print,
) -> Plan:
    """Print what a step of the config takes on a topology; write it to `json_path`; return it.

    mesh: None for the config's own, "auto" to try those that divide. Of steps that train different tasks in turn, each
    is printed, and the JSON is of the one that takes most memory.

    Raises UsageError for what cannot be planned, and, after the JSON is written, for a model that does not fit.
    """
    if topology is None:
        raise UsageError(f"--topology is missing; there is {FORMS}")
    if mesh not in (None, "auto"):
        raise UsageError(f"--mesh={mesh} must be auto; a mesh of one's own is --config.mesh.fsdp=8, and so on")
    asked = vars(typed(MeshConfig, config.get("mesh", {}), "mesh"))
    where = open_topology(topology)

    single = build({**config, "mesh": dict(data=1)}, task_class)  # on a device of this machine: it makes no array

    def make(sizes: Mapping[str, int]) -> Experiment:
        mesh = make_mesh(**vars(typed(MeshConfig, sizes, "mesh")), devices=where.devices)
        placed = replace(single, mesh=mesh)
        check_batches(placed.tasks, placed.program)
        shardings(placed.model, mesh)  # heads that the mesh does not divide, and what would be left whole, are errors
        return placed

    if mesh == "auto":
        best = _try_meshes(single, make, where, asked["sequence"], say)
    else:
        sizes = _whole_mesh(single, where, asked)
        try:
            experiment = make(sizes)
        except UsageError as error:
            if "divisible" not in str(error):
                raise
            raise UsageError(f"{error}; {_those_that_divide(single, where, asked['sequence'])}") from error
        best = _plan_all(experiment, where, say)
    if json_path is not None:
        json_path.write_text(json.dumps(best.as_json(), indent=2) + "\n", encoding="utf-8")
    if best.fits is False:
        raise UsageError(f"{', '.join(best.tasks)} does not fit {where.name}: {_remedy(best, config)}")
    return best


def _plan_all(experiment: Experiment, where: Topology, say: Say) -> Plan:
    """Every kind of step, printed; the one that takes most memory."""
    found = []
    for names in step_sets(experiment):
        found.append(plan(experiment, where, names))
        if found[-1].fits is not False or found[-1].flops:
            say(report(found[-1]) + "\n")
    return max(found, key=lambda p: p.memory.total)


def _try_meshes(
    single: Experiment, make: Callable[[Mapping[str, int]], Experiment], where: Topology, sequence: int, say: Say
) -> Plan:
    """Compile for the most promising meshes, print them in order, and the best in full."""
    sequence = max(1, sequence)
    every = dividing(single, len(where.devices), sequence=sequence)
    chosen = promising(single, where, sequence=sequence)
    if not chosen:
        why = "no mesh divides its batches, heads and MLPs" if not every else "its parameters alone are too large"
        raise UsageError(f"the model does not fit {where.name}: {why}")
    say(f"{len(every)} meshes divide {where.name} and the model; compiling for {len(chosen)} of them\n")
    found = []
    for sizes in chosen:
        try:
            experiment = make(sizes)
        except UsageError as error:  # a large parameter that this mesh would leave whole on every device, say
            say(f"{spell(sizes)}: {error}")
            continue
        steps = [plan(experiment, where, names) for names in step_sets(experiment)]
        found.append(max(steps, key=lambda p: p.memory.total))
    if not found:
        raise UsageError(f"none of the meshes that divide {where.name} can hold the model")
    found.sort(key=_rank)
    say(comparison(found) + "\n")
    if found[0].fits is not False:
        say(report(found[0]))
    return found[0]


def _rank(found: Plan) -> tuple[bool, float, float]:
    """Rank meshes: those that fit first, then by the time that a step takes at best, or by what it sends, and by memory."""
    if found.fits is False:
        return (True, 0.0, found.memory.total)
    sent = sum(c.sent for c in found.collectives.values())
    return (False, found.bound.seconds if found.bound else sent, found.memory.total)


def _whole_mesh(single: Experiment, where: Topology, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """The config's mesh, if it takes all devices of the topology. Raises UsageError, listing meshes that do."""
    if list(sizes.values()).count(-1) > 1 or min(sizes.values()) < -1 or 0 in sizes.values():
        return sizes  # for `make_mesh` to refuse
    fixed, count = math.prod(size for size in sizes.values() if size != -1), len(where.devices)
    if count % fixed or (-1 not in sizes.values() and fixed != count):
        asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size not in (1, -1)) or "data=1"
        raise UsageError(
            f"mesh {asked} does not divide the {count} devices of {where.name}; "
            f"{_those_that_divide(single, where, sizes['sequence'])}"
        )
    return sizes


def _those_that_divide(single: Experiment, where: Topology, sequence: int) -> str:
    count = len(where.devices)
    found = dividing(single, count, sequence=max(1, sequence)) or dividing(single, count)
    return f"meshes that divide it, the batch and the model: {spell_some(found)}"


def _remedy(found: Plan, config: Config) -> str:
    """Say by how much it does not fit, and what would, by estimate: arguments are split over fsdp and tensor, temporaries
    over the rows of a batch."""
    memory, chip, mesh = found.memory, found.topology.chip, found.mesh
    capacity = memory.capacity or 0.0
    ideas = []
    if mesh["data"] > 1:
        split = mesh["data"]
        if memory.arguments / split + memory.temporaries <= capacity:
            ideas.append(f"fsdp={mesh['fsdp'] * split} instead of data={split}")
    room = capacity - memory.arguments
    if any(backbone.get("remat", "none") != "full" for backbone in config.get("backbones", {}).values()):
        ideas.append("remat='full' in its backbones")
    if room > 0:
        # Micro-batches keep their gradients' sum, as large as the parameters: a third of the state.
        room = max(room - memory.arguments / 3, 0.05 * capacity)
        times = 2 ** math.ceil(math.log2(max(2.0, memory.temporaries / room)))
        ideas.append(f"optimizer.accumulate={times}, or a batch {times} times smaller")
    larger = (
        n
        for n in (len(found.topology.devices) * 2**i for i in range(1, 8))
        if memory.total * len(found.topology.devices) <= n * capacity
    )
    if chip.axes and (n := next(larger, None)):
        shape = next((s for s in FLAT if math.prod(s) == n), None) if chip.axes == 2 else _cube(n)
        if shape and exists(chip, shape):
            ideas.append(f"{chip.name}:{'x'.join(map(str, shape))} with the same batch and fsdp over all of it")
    advice = "; ".join(ideas) or "a larger topology"
    return f"{verdict(memory)}; by estimate this would: {advice}"


def _cube(chips: int) -> tuple[int, int, int]:
    """The most cubic slice of a power of two of chips."""
    power = int(math.log2(chips))
    sides = sorted(2 ** ((power + i) // 3) for i in range(3))
    return (sides[0], sides[1], sides[2])
