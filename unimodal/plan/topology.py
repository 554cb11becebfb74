"""Devices to compile for: TPU slices that nobody has rented, simulated CPU devices, or this machine's own."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from unimodal.chips import TPUS, Chip, chip_of
from unimodal.errors import UsageError

# Slices of a flat torus (v5e, v6e), and the small ones of a deep torus (v4, v5p); above, whole cubes of 4x4x4.
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
DEEP = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
FORMS = "v4:…, v5e:…, v5p:…, v6e:… with the sides of the slice, as v5p:8x8x8; cpu:N; gpu or gpu:N"


@dataclass(frozen=True)
class Topology:
    """Chips that are described and need not be here."""

    name: str  # as given
    chip: Chip  # of which kind
    devices: Sequence[Any]  # what a mesh is made of
    hosts: int  # machines that hold them


def open_topology(name: str) -> Topology:
    """`name` (see FORMS) → its devices. TPU slices need libtpu, but no TPU.

    Must be called before JAX is used, as it may choose JAX's platform. Raises UsageError for a topology that does not
    exist (with the nearest that do), without libtpu, and while another process holds it.
    """
    kind, _, sides = name.partition(":")
    if kind == "cpu":
        return _simulated(name, sides)
    if kind in ("gpu", "cuda"):
        return _local_gpus(name, sides)
    if kind not in TPUS or not re.fullmatch(r"\d+(x\d+)*", sides):
        raise UsageError(f"unknown topology {name!r}; {nearest_shapes(kind, sides)}")
    shape = tuple(int(side) for side in sides.split("x"))
    if not exists(TPUS[kind], shape):
        raise UsageError(f"there is no topology {name!r}; {nearest_shapes(kind, sides)}")
    devices = _tpu_devices(TPUS[kind], shape)
    chips = math.prod(shape)
    return Topology(name, TPUS[kind], devices, max(1, chips // math.prod(_per_host(shape))))


def exists(chip: Chip, shape: Sequence[int]) -> bool:
    """True if slices of this shape exist."""
    if chip.axes == 2:
        return tuple(shape) in FLAT
    whole = len(shape) == 3 and all(side % 4 == 0 for side in shape) and list(shape) == sorted(shape)
    return tuple(shape) in DEEP or (whole and 0 < math.prod(shape) <= chip.largest)


def wraps(chip: Chip, shape: Sequence[int]) -> tuple[bool, bool, bool]:
    """Which sides of the slice are closed to a ring. A flat torus closes where it is as long as the pod, a deep one
    when it is made of whole cubes."""
    if chip.axes == 2:
        return (shape[0] == 16, shape[1] == 16, False)
    closed = all(side % 4 == 0 for side in shape)
    return (closed, closed, closed)


def _tpu_devices(chip: Chip, shape: tuple[int, ...]) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError("libtpu is not installed, and compiles for TPUs: pip install 'unimodal[tpu]'")
    # No TPU is asked for: do not look for one, nor for the cloud's description of this machine.
    for key, value in dict(
        TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE=f"{chip.name}-1", TPU_WORKER_HOSTNAMES="localhost"
    ).items():
        os.environ.setdefault(key, value)
    for key in ("TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"):
        os.environ.setdefault(key, "3")
    jax.config.update("jax_platforms", "cpu")
    options: dict[str, Any] = dict(chips_per_host_bounds=_per_host(shape), wrap=wraps(chip, shape))
    if chip.axes == 3:
        # Two cores that act as one device. Without it v4 shows each core, and without the closed rings of `wrap`
        # all-gathers become all-reduces.
        options["chip_config_name"] = "megacore"
    name = f"{chip.name}:{'x'.join(map(str, shape))}"
    try:
        return topologies.get_topology_desc(name, platform="tpu", **options).devices
    except Exception as error:  # libtpu has no exception of its own
        text = " ".join(str(error).split())
        if "lockfile" in text or "already in use" in text:
            raise UsageError(
                "one process at a time may hold libtpu, and another does; wait until it ends "
                "(or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 where no process here uses a TPU)"
            ) from error
        raise UsageError(f"libtpu does not know topology {name}: {text[:300]}") from error


def _per_host(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Chips of one host along each side."""
    if shape == (1, 1):
        return (1, 1, 1)
    return (2, 4, 1) if shape == (2, 4) else (2, 2, 1)


def _simulated(name: str, count: str) -> Topology:
    if not count.isdigit() or int(count) < 1:
        raise UsageError(f"unknown topology {name!r}: say how many devices to simulate, as cpu:8")
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX runs already: with what it has, then
        jax.config.update("jax_num_cpu_devices", int(count))
    devices = jax.devices("cpu")
    if len(devices) < int(count):
        raise UsageError(f"topology {name} asks for {count} devices, but JAX already runs with {len(devices)}")
    return Topology(name, chip_of(devices[0]), devices[: int(count)], 1)


def _local_gpus(name: str, count: str) -> Topology:
    try:
        devices = jax.devices("gpu")
    except RuntimeError as error:
        raise UsageError("topology gpu compiles for this machine's GPUs, and JAX finds none") from error
    wanted = len(devices) if not count else int(count) if count.isdigit() else 0
    if not 0 < wanted <= len(devices):
        raise UsageError(f"unknown topology {name!r}: this machine has {len(devices)} GPUs, so gpu:{len(devices)}")
    return Topology(name, chip_of(devices[0]), devices[:wanted], 1)


def nearest_shapes(kind: str, sides: str) -> str:
    """List the nearest shapes that exist."""
    chip = TPUS.get(kind)
    if chip is None:
        return f"there is {FORMS}"
    shapes = FLAT if chip.axes == 2 else (*DEEP, *_cubes(chip.largest))
    asked = math.prod(int(side) for side in re.findall(r"\d+", sides)) if re.search(r"\d", sides) else 1
    close = sorted(shapes, key=lambda shape: abs(math.log(math.prod(shape) / max(asked, 1))))[:4]
    near = ", ".join(f"{kind}:{'x'.join(map(str, shape))}" for shape in sorted(close, key=math.prod))
    return f"the nearest are {near}"


def _cubes(largest: int) -> list[tuple[int, int, int]]:
    """Slices of whole cubes, none of their sides more than twice another."""
    sides = range(4, 29, 4)
    found = [(a, b, c) for a in sides for b in sides for c in sides if a <= b <= c <= 2 * a]
    return [shape for shape in found if math.prod(shape) <= largest]
