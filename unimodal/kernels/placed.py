"""Kernels on a mesh: each device computes its part of the batch, of the heads and of the sequence.

A sequence is split in one of two ways. **Ring** (Liu 2023): keys and values are passed on, for any number of heads.
**All-to-all** (Jacobs 2023, "Ulysses"): heads are exchanged for tokens, so each device has whole rows of some heads and can
run any kernel, fused ones included. The key/value heads must divide, and a device holds T tokens of each, not T/devices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unimodal.kernels.blockwise import Tiles, blockwise, stretches, tiling
from unimodal.sharding import MESH_AXES, spec_for
from unimodal.visibility import Pattern, first_of_segments

AXIS = "sequence"
# What a chip computes at its peak while a byte goes to its neighbour (4,400 on TPU v5e, 2,200 on H100 with NVLink), twice,
# because a zigzag's ways are longer. An estimate: no ring has been timed on either.
FLOPS_PER_BYTE = 8192
Kernel = Callable[..., jax.Array]


def mesh_in_force() -> Any | None:
    """Find the mesh to spread over. None: no mesh, one device, other axes, or inside a `shard_map` already."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or not set(MESH_AXES) <= set(mesh.axis_names):
        return None
    return mesh


def platform() -> str:
    """Name the platform of the mesh's devices, which may be compiled for only, or else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def sequence_parts() -> int:
    """Count the devices that a sequence is split over on the current mesh."""
    mesh = mesh_in_force()
    return 1 if mesh is None else mesh.shape[AXIS]


def on_mesh(kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, *marks: jax.Array | None) -> jax.Array:
    """Run kernel(q, k, v, *marks) on each device's part. `marks` are [B,T] or None.

    T must divide over `sequence`. A batch that does not divide stays whole.
    """
    mesh = mesh_in_force()
    if mesh is None:
        return kernel(q, k, v, *marks)
    queries = spec_for(q.shape, ("batch", "tokens", "heads", "head_size"), mesh, name="queries")
    keys = spec_for(k.shape, ("batch", "tokens", "kv_heads", "head_size"), mesh, name="keys")
    rows = PartitionSpec(*queries[:2])
    specs = (queries, keys, keys, *(rows for _ in marks))
    # Pallas kernels and our own loops do not declare what varies over which axis, so turn the check off.
    return jax.shard_map(kernel, in_specs=specs, out_specs=queries, check_vma=False)(q, k, v, *marks)


def ring(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment: jax.Array | None,
    pattern: Pattern,
    *,
    scale: float,
    tile: int = 512,
    right_padded: bool = False,
    zigzag: bool | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Compute blockwise attention [B,T,H,K] on the current mesh, as a ring along `sequence`, or without a mesh.

    right_padded: as in `Tokens`. soft_cap: as in `dense.attend`. zigzag: rearrange the row in a zigzag meanwhile; None: if
    `zigzag_pays`.
    """
    devices, T, always = sequence_parts(), q.shape[1], None
    if segment is not None and pattern.narrow and pattern.global_tokens and not right_padded:
        always = first_of_segments(segment, pattern.global_tokens)
    if zigzag is None:
        zigzag = zigzag_pays(pattern, devices, tile, q.shape[2], k.shape[2], q.dtype.itemsize)
    size, count = tiling(T, devices, tile, zigzag=zigzag)
    axis = AXIS if devices > 1 else None
    shape: dict[str, Any] = dict(tile=tile, axis=axis, devices=devices, zigzag=zigzag)
    kernel = partial(blockwise, pattern=pattern, scale=scale, soft_cap=soft_cap, **shape)

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None, always: jax.Array | None
    ) -> jax.Array:
        if not zigzag:
            return kernel(q, k, v, segment, always=always)
        q, k, v, segment, always = jax.tree.map(partial(_exchange, devices=devices), (q, k, v, segment, always))
        return _exchange(kernel(q, k, v, segment, always=always), devices, back=True)

    padded = _padded((q, k, v, segment, always), devices * size * count)
    return on_mesh(local, *padded)[:, :T]


@cache  # as every layer asks
def zigzag_pays(pattern: Pattern, devices: int, tile: int, heads: int, kv_heads: int, itemsize: int) -> bool:
    """True if a zigzag saves the slowest device more time than it takes to rearrange the row and back.

    A pair of tokens costs 14 FLOPs per head and each of its K numbers, forward and backward (2 and 5 products). Of each
    token, q, k, v, the result and all their gradients are sent to another device once.
    """
    if devices == 1:
        return False
    pairs = []
    for zigzag in (False, True):
        size, count = tiling(pattern.length, devices, tile, zigzag=zigzag)
        tiles = Tiles(pattern, 1.0, size, count, devices, AXIS, zigzag)
        pairs.append(int(tiles.work().max(axis=1).sum()) * size**2)  # at each step all wait for the slowest
    moved = 2 * itemsize * (2 * heads + 2 * kv_heads) * pattern.length // devices
    return 14 * heads * (pairs[0] - pairs[1]) > FLOPS_PER_BYTE * moved


def _exchange(x: jax.Array, devices: int, *, back: bool = False) -> jax.Array:
    """Exchange this device's part [B,T/devices,...] of a row in order for its part in a zigzag, or back."""
    halves = []
    for half, held in zip(jnp.split(x, 2, axis=1), zip(*stretches(devices), strict=True), strict=True):
        # Stretch s is half of what device s // 2 holds in the row's order: the first one, if even.
        order = [(stretch // 2, device) for device, stretch in enumerate(held)]
        halves.append(jax.lax.ppermute(half, AXIS, [(b, a) for a, b in order] if back else order))
    return jnp.concatenate(halves, axis=1)


def all_to_all(kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None) -> jax.Array:
    """Run kernel(q, k, v, segment), [B,T,H,K], on whole rows of each device's share of the heads."""
    T, devices = q.shape[1], sequence_parts()
    exchange = partial(jax.lax.all_to_all, axis_name=AXIS, tiled=True)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None) -> jax.Array:
        local_T = q.shape[1]
        if segment is not None:
            segment = jax.lax.all_gather(segment, AXIS, axis=1, tiled=True)[:, :T]
        q, k, v = (exchange(x, split_axis=2, concat_axis=1)[:, :T] for x in (q, k, v))
        (out,) = _padded((kernel(q, k, v, segment),), local_T * devices)
        return exchange(out, split_axis=1, concat_axis=2)

    q, k, v, segment = _padded((q, k, v, segment), -(-T // devices) * devices)
    return on_mesh(local, q, k, v, segment)[:, :T]


def heads_divide(heads: int) -> bool:
    """True if so many key/value heads divide over `sequence`, after `tensor` has its part."""
    mesh = mesh_in_force()
    return mesh is None or heads % (mesh.shape["tensor"] * mesh.shape[AXIS]) == 0


def _padded(arrays: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    """Pad with zeros at the end of T. In segments, 0 is padding."""
    pad = lambda x: jnp.pad(x, ((0, 0), (0, length - x.shape[1])) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
    return tuple(x if x is None or x.shape[1] == length else pad(x) for x in arrays)
