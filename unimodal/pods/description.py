"""What is to run, where, and on how much: the same for every platform."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from unimodal.chips import TPUS as CHIPS
from unimodal.configuration import nearest
from unimodal.errors import UsageError
from unimodal.plan.topology import exists, nearest_shapes

PLATFORMS = ("local", "tpu-vm", "gke", "slurm", "sky")
ACTIONS = ("run", "logs", "delete")


@dataclass(frozen=True)
class Pod:
    """A run on other machines, as the flags of `pod` describe it."""

    platform: str = ""  # whose tool runs it: local, tpu-vm, gke, slurm or sky
    name: str = "unimodal"  # of the run, and of what is created for it
    action: str = "run"  # run it, follow its logs, or delete it
    command: str = "train"  # of launch.py: train, eval or doctor
    topology: str | None = None  # one TPU slice, as v5e:4x4
    accelerator: str | None = None  # GPUs of one node, as H100:8
    slices: int = 1  # of TPUs
    processes: int = 2  # nodes of GPUs, or processes on this machine
    devices: int = 1  # CPU devices of each process on this machine; 0: one GPU each
    zone: str | None = None  # of the cloud
    project: str | None = None  # of the cloud
    image: str | None = None  # of the container
    partition: str | None = None  # of Slurm
    account: str | None = None  # of Slurm
    time: str = "24:00:00"  # limit of a Slurm job
    spot: bool = False  # cheaper machines, which may be taken away
    restarts: int = 10  # how often a run that was stopped is started again
    reuse: bool = False  # run on a TPU that exists already
    setup: str | None = None  # a shell command before the run, on every host
    volume: str | None = None  # storage that all hosts share and where to mount it, as gs://BUCKET:/runs or CLAIM:/runs
    dry_run: bool = False  # print what would run, and change nothing

    def __post_init__(self) -> None:
        for field, known in (("platform", PLATFORMS), ("action", ACTIONS)):
            if (value := getattr(self, field)) not in known:
                raise UsageError(f"--{field}={value} is not one of {', '.join(known)}; {nearest(value, known)}")
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", self.name):
            raise UsageError(
                f"--name={self.name} must be of small letters, digits and dashes, at most 40, a letter first"
            )
        for field, least in (("slices", 1), ("processes", 1), ("devices", 0), ("restarts", 0)):
            if getattr(self, field) < least:
                raise UsageError(f"--{field} must be at least {least}, but is {getattr(self, field)}")


def split_flags(arguments: Sequence[str]) -> tuple[Pod, list[str]]:
    """The flags of a pod (--name=value, or --flag alone for a yes), and what is left for the run itself.

    Raises UsageError for a value of the wrong type.
    """
    hints, given, rest = get_type_hints(Pod), {}, []
    names = {field.name for field in fields(Pod)}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in names:
            rest.append(argument)
            continue
        if not equals and hints[name] is not bool:
            if not waiting:
                raise UsageError(f"--{name} needs a value")
            value = waiting.pop(0)
        given[name] = _read(name, value, hints[name])
    return Pod(**given), rest


def _read(name: str, value: str, hint: Any) -> Any:
    if hint is bool:
        if value not in ("", "true", "false", "True", "False"):
            raise UsageError(f"--{name} is true or false, but is {value}")
        return value not in ("false", "False")
    if hint is int:
        if not re.fullmatch(r"-?\d+", value):
            raise UsageError(f"--{name} must be a whole number, but is {value!r}")
        return int(value)
    return value


@dataclass(frozen=True)
class TpuKind:
    """A kind of TPU, in the words of the platforms."""

    prefix: str  # of the accelerator type
    counted: int  # how much its number counts per chip
    runtime: str  # image of a TPU VM
    label: str  # of GKE's nodes
    dimensions: int  # of a topology
    one_host: tuple[str, ...]  # topologies that are one machine; others have 4 chips on each


TPUS = {
    "v4": TpuKind("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 3, ("2x2x1",)),
    "v5e": TpuKind("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 2, ("1x1", "2x2", "2x4")),
    "v5p": TpuKind("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 3, ("2x2x1",)),
    "v6e": TpuKind("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 2, ("1x1", "2x2", "2x4")),
}


@dataclass(frozen=True)
class Slice:
    """One TPU slice."""

    kind: TpuKind  # of TPU
    shape: str  # its sides in chips, as 4x4

    @property
    def chips(self) -> int:
        return math.prod(int(side) for side in self.shape.split("x"))

    @property
    def hosts(self) -> int:
        return 1 if self.shape in self.kind.one_host else max(1, self.chips // 4)

    @property
    def accelerator_type(self) -> str:
        return f"{self.kind.prefix}-{self.chips * self.kind.counted}"


def usual_shape(one: Slice) -> str:
    """The shape that slices of as many chips have where only their number is asked for: the most cubic."""
    chip = next(CHIPS[name] for name, kind in TPUS.items() if kind == one.kind)
    sides = [n for n in range(1, one.chips + 1) if one.chips % n == 0]
    deep = [(a, b, one.chips // (a * b)) for a in sides for b in sides if one.chips % (a * b) == 0]
    shapes = [shape for shape in deep if exists(chip, shape)]
    return one.shape if chip.axes == 2 else "x".join(map(str, min(shapes, key=sum)))


def tpu_slice(topology: str | None) -> Slice:
    """v5e:4x4 → its slice. Raises UsageError for a kind or a shape that there is not."""
    if topology is None:
        raise UsageError("--topology is missing: give the TPU slice, as --topology=v5e:4x4")
    name, _, shape = topology.partition(":")
    if name not in TPUS:
        raise UsageError(f"--topology={topology}: no TPU is called {name!r}; {nearest(name, tuple(TPUS))}")
    kind = TPUS[name]
    if not re.fullmatch(r"x".join([r"[1-9]\d*"] * kind.dimensions), shape):
        example = "x".join(["4"] * kind.dimensions)
        raise UsageError(f"--topology={topology}: {name} has {kind.dimensions} dimensions, as {name}:{example}")
    if not exists(CHIPS[name], [int(side) for side in shape.split("x")]):
        raise UsageError(f"there is no topology {topology}; {nearest_shapes(name, shape)}")
    return Slice(kind, shape)


def device_count(pod: Pod) -> int:
    """Of the whole run. Raises UsageError."""
    if pod.platform == "local":
        return pod.processes * max(1, pod.devices)
    if pod.platform == "tpu-vm" or (pod.platform != "slurm" and chosen(pod) == "tpu"):
        return tpu_slice(pod.topology).chips * pod.slices
    return gpus(pod.accelerator)[1] * pod.processes


def gpus(accelerator: str | None) -> tuple[str, int]:
    """H100:8 → ("H100", 8). Raises UsageError."""
    kind, _, count = (accelerator or "").partition(":")
    if not kind or not re.fullmatch(r"[1-9]\d*", count or "1"):
        raise UsageError(f"--accelerator={accelerator}: give the GPUs of one node, as --accelerator=H100:8")
    return kind, int(count or "1")


def chosen(pod: Pod) -> str:
    """ "tpu" or "gpu". Raises UsageError unless exactly one of topology and accelerator is given."""
    if (pod.topology is None) == (pod.accelerator is None):
        raise UsageError(
            "give either --topology (a TPU slice, as v5e:4x4) or --accelerator (GPUs of a node, as H100:8)"
        )
    if pod.accelerator and pod.slices > 1:
        raise UsageError("--slices are of TPUs: for more nodes of GPUs give --processes")
    return "tpu" if pod.topology else "gpu"
