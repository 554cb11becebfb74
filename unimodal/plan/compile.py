"""The real train step, compiled ahead of time for devices that need not be here, and what its program says."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from unimodal.chips import GIB
from unimodal.errors import UsageError
from unimodal.experiment import Experiment
from unimodal.plan.count import Collective, collectives, eight_bit_flops, flops, kernels, traffic
from unimodal.plan.hlo import parse
from unimodal.plan.model_flops import model_flops
from unimodal.plan.roofline import Roofline, roofline
from unimodal.plan.topology import Topology
from unimodal.sharding import LARGE_BYTES, batch_sharding, parameter_count, parameter_table
from unimodal.training.loop import turns


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    arguments: float  # parameters, optimizer and batch
    temporaries: float  # everything else that a step takes, holes between buffers included
    capacity: float | None  # of the chip; None: not known
    accepted: bool | None = None  # by a compiler that refuses programs which do not fit; None: it would take any
    peak: float | None = None  # alive at the worst moment, where the compiler says so

    @property
    def total(self) -> float:
        return self.arguments + self.temporaries

    @property
    def fits(self) -> bool | None:
        if self.accepted is not None:
            return self.accepted
        return None if self.capacity is None else self.total <= self.capacity

    def as_json(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in ("arguments", "temporaries", "total", "capacity")}


@dataclass(frozen=True)
class Plan:
    """One compiled step. Counts are per device and step."""

    topology: Topology  # the chips
    tasks: tuple[str, ...]  # that train together in it
    mesh: Mapping[str, int]  # devices along each axis
    parameters: int  # how many, over all devices
    memory: Memory  # if `fits` is False, nothing below is known
    model_flops: float = 0.0  # of the matrix products that the model needs
    flops: float = 0.0  # of all that is computed
    hidden_flops: float = 0.0  # of kernels, which the compiler does not count
    eight_bit_flops: Mapping[str, float] = field(default_factory=dict)  # of `flops`, those of "int8" and of "float8"
    traffic: float = 0.0  # bytes to and from the main memory
    collectives: Mapping[str, Collective] = field(default_factory=dict)  # by kind
    kernels: Mapping[str, int] = field(default_factory=dict)  # by name, how often they run
    replicated: Sequence[str] = ()  # large arrays that lie whole on every device
    program_bytes: int = 0  # of the compiled program
    seconds: float = 0.0  # of compiling

    @property
    def fits(self) -> bool | None:
        return self.memory.fits

    @property
    def bound(self) -> Roofline | None:
        sent = sum(collective.sent for collective in self.collectives.values())
        total = self.flops + self.hidden_flops
        chip = self.topology.chip
        return roofline(
            chip,
            flops=total,
            model_flops=self.model_flops,
            traffic=self.traffic,
            sent=sent,
            eight_bit=self.eight_bit_flops,
        )

    def as_json(self) -> dict[str, Any]:
        bound = self.bound if self.flops else None
        return {
            "devices": len(self.topology.devices),
            "parameters": self.parameters,
            "hbm": self.memory.as_json(),
            "fits": self.fits,
            "flops_per_device": self.flops + self.hidden_flops,
            "eight_bit_flops_per_device": dict(self.eight_bit_flops),
            "model_flops_per_device": self.model_flops,
            "collectives": {k: {"count": round(c.count), "bytes": round(c.bytes)} for k, c in self.collectives.items()},
            "kernels": dict(self.kernels),
            "mesh": dict(self.mesh),
            "bound": None if bound is None else bound.as_json(),
        }


def step_sets(experiment: Experiment) -> list[tuple[str, ...]]:
    """The sets of tasks that train together in a step: all of them, or each in its turn."""
    who = turns(experiment.tasks, experiment.loop.schedule)
    return list(dict.fromkeys(who(step) for step in range(min(experiment.loop.steps, 10_000))))


def plan(experiment: Experiment, topology: Topology, names: Sequence[str]) -> Plan:
    """Compile the step of the named tasks for the topology and read what it will take. A program that does not fit is an
    answer: then `fits` is False. Raises UsageError if it cannot be compiled for another reason."""
    table = parameter_table(experiment.model, experiment.mesh)
    replicated = [
        row["name"] for row in table if row["bytes"] > LARGE_BYTES and row["bytes"] == row["bytes_per_device"]
    ]
    known: dict[str, Any] = dict(
        topology=topology,
        tasks=tuple(names),
        mesh=dict(experiment.mesh.shape),
        parameters=parameter_count(table),
        replicated=replicated if experiment.mesh.size > 1 else (),
        model_flops=model_flops(experiment, names) / experiment.mesh.size,
    )
    capacity = topology.chip.capacity
    began = time.perf_counter()
    try:
        compiled = compile_step(experiment, names)
    except jax.errors.JaxRuntimeError as error:
        if (needed := out_of_memory(str(error), state_bytes(experiment, names), capacity)) is None:
            lines = str(error).strip().splitlines() or ["no reason given"]
            raise UsageError(f"the step does not compile for {topology.name}: {lines[0][:400]}") from error
        return Plan(**known, memory=needed, seconds=time.perf_counter() - began)
    seconds = time.perf_counter() - began
    stats, text = compiled.memory_analysis(), compiled.as_text()
    # What comes out in the place of an argument (the donated state) takes no room of its own.
    arguments = stats.argument_size_in_bytes
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    temporaries = stats.temp_size_in_bytes + fresh
    temporaries += stats.generated_code_size_in_bytes
    accepted = True if topology.chip.axes else None
    program = parse(text)
    seen, hidden = flops(program)
    return Plan(
        **known,
        memory=Memory(arguments, temporaries, capacity, accepted, stats.peak_memory_in_bytes or None),
        flops=seen,
        hidden_flops=hidden,
        eight_bit_flops=eight_bit_flops(program),
        traffic=traffic(program),
        collectives=collectives(program),
        kernels=kernels(program),
        program_bytes=len(text),
        seconds=seconds,
    )


def compile_step(experiment: Experiment, names: Sequence[str]) -> Any:
    """The step as the loop would run it, compiled on shapes alone: no data is opened and no array made."""
    state, batch = abstract_arguments(experiment, names)
    weigh = experiment.loop.schedule == "sum"
    tasks = [task for task in experiment.tasks if task.name in names]
    step: Any = experiment.program.step({t.name: (t.loss, t.weight if weigh else 1.0) for t in tasks})
    with jax.set_mesh(experiment.mesh):
        return step.lower(state, batch).compile()


def abstract_arguments(experiment: Experiment, names: Sequence[str]) -> tuple[Any, Any]:
    """The state and the batches of a step as shapes with shardings."""
    parts = experiment.program.accumulate
    where = batch_sharding(experiment.mesh, leading=int(parts > 1))

    def rows(size: int) -> tuple[int, ...]:
        return (size,) if parts == 1 else (parts, size // parts)

    batch = {
        task.name: {
            name: jax.ShapeDtypeStruct((*rows(task.batch_size), *a.shape), a.dtype, sharding=where)
            for name, a in task.inputs(experiment.model).spec.items()
        }
        for task in experiment.tasks
        if task.name in names
    }
    return experiment.program.abstract_state(), batch


def state_bytes(experiment: Experiment, names: Sequence[str]) -> float:
    """Bytes of a step's arguments on each device."""

    def size(leaf: jax.ShapeDtypeStruct) -> float:
        assert leaf.sharding is not None
        shape: Sequence[int] = leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(abstract_arguments(experiment, names)))


def out_of_memory(message: str, arguments: float, capacity: float | None) -> Memory | None:
    """Read the bytes that a program needs from a compiler's out-of-memory error. None: another error.

    TPU compilers say "Used 17.50G of 15.75G hbm", or, where temporaries alone are too large, "required for HLO
    temporaries (27.00G) exceeds available HBM (15.75G)".
    """
    size = r"([\d.]+)([KMGT])"
    if used := re.search(rf"Used {size} of {size} hbm", message):
        temporaries = _bytes(used[1], used[2]) - arguments
    elif used := re.search(rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)", message):
        temporaries = _bytes(used[1], used[2])
    else:
        return None
    return Memory(arguments, max(0.0, temporaries), _bytes(used[3], used[4]) or capacity, False)


def _bytes(number: str, unit: str) -> float:
    return float(number) * {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[unit]
