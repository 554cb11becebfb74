"""Compares the copies of the state that devices hold: a chip that computes wrong numbers without a word is found and named."""

from __future__ import annotations

import functools
import socket
from collections import Counter
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimodal.training.fingerprint import leaf_hash

_MOST = 3  # arrays that are named in one line
_LONGEST = 64  # bytes of a host's name


def differing(arrays: Mapping[str, jax.Array], mesh: Mesh) -> str | None:
    """Say where copies of one value differ in a bit, or None if all are equal.

    Arrays lie on `mesh`. Every device hashes what it holds, so nothing but one number per array and device travels. What
    only one device holds (all of it with fsdp over all devices) has no copy to be compared with.
    """
    specs = {name: x.sharding.spec for name, x in arrays.items() if isinstance(x.sharding, NamedSharding)}
    copied = {name: _free_axes(spec, mesh) for name, spec in specs.items()}
    watched = {name: arrays[name] for name, axes in copied.items() if axes}
    if not watched:
        return None
    hashes = jax.device_get(_hashes(tuple((name, specs[name]) for name in watched), mesh)(watched))
    odd: dict[str, list[int]] = {}
    for name, of_devices in hashes.items():
        if found := _odd_devices(of_devices, copied[name], mesh):
            odd[name] = found
    if not odd:
        return None
    devices = sorted({device for found in odd.values() for device in found})
    owner, hosts = {device.id: device.process_index for device in mesh.devices.flat}, _hosts()
    whose = ", ".join(f"{device} (process {owner[device]} on {hosts[owner[device]]})" for device in devices)
    named = ", ".join(sorted(odd)[:_MOST]) + (f" and {len(odd) - _MOST} more" if len(odd) > _MOST else "")
    return f"device{'s' if len(devices) > 1 else ''} {whose}: {named}"


def _hosts() -> list[str]:
    """The names of the hosts, by process. All processes ask, as all have found the same."""
    own = np.zeros(_LONGEST, np.uint8)
    name = socket.gethostname().encode()[:_LONGEST]
    own[: len(name)] = np.frombuffer(name, np.uint8)
    every = multihost_utils.process_allgather(own).reshape(-1, _LONGEST)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in every]


def _free_axes(spec: PartitionSpec, mesh: Mesh) -> list[int]:
    """Numbers of the mesh axes over which an array is copied and not split."""
    used = {axis for part in spec if part is not None for axis in (part if isinstance(part, tuple) else (part,))}
    return [i for i, axis in enumerate(mesh.axis_names) if axis not in used and mesh.shape[axis] > 1]


@functools.lru_cache(maxsize=8)
def _hashes(specs: tuple[tuple[str, PartitionSpec], ...], mesh: Mesh):
    """A compiled function: arrays → for each a uint32 array of the mesh's shape, what each device holds of it."""
    axes = tuple(mesh.axis_names)

    def local(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: leaf_hash(x).reshape((1,) * len(axes)) for name, x in arrays.items()}

    # Without the check that copies are equal, which is what is in question.
    each = jax.shard_map(local, mesh=mesh, in_specs=(dict(specs),), out_specs=PartitionSpec(*axes), check_vma=False)
    return jax.jit(each, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _odd_devices(hashes: np.ndarray, free: list[int], mesh: Mesh) -> list[int]:
    """Ids of devices whose hash is not that of most copies of the same shard; of all that hold it if there is no majority."""
    ids = np.vectorize(lambda device: device.id, otypes=[int])(mesh.devices)
    copies = int(np.prod([hashes.shape[i] for i in free]))
    last = list(range(hashes.ndim - len(free), hashes.ndim))
    rows, places = (np.moveaxis(x, free, last).reshape(-1, copies) for x in (hashes, ids))
    found: list[int] = []
    for row, place in zip(rows, places, strict=True):
        (most, count), *others = Counter(row.tolist()).most_common()
        if others:
            tied = others[0][1] == count
            found += [int(device) for value, device in zip(row, place, strict=True) if tied or value != most]
    return found
