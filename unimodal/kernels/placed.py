"""Kernels on a mesh: each device computes its part of the batch, of the heads and, in two ways, of the sequence.

**Ring** (Liu 2023): keys and values travel, any number of heads. **All-to-all** (Jacobs 2023, "Ulysses"): heads are
exchanged for tokens, so that each device has whole rows of some heads and may run any kernel, the fused ones with their
static pattern; it needs the key/value heads to divide, and holds T of them rather than T/devices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from unimodal.kernels.blockwise import blockwise, tiling
from unimodal.sharding import MESH_AXES, spec_for
from unimodal.visibility import Pattern

AXIS = "sequence"
Kernel = Callable[..., jax.Array]


def mesh_in_force() -> Any | None:
    """The mesh to spread over, or None: without one, on one device, on other axes, inside a `shard_map` already."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or not set(MESH_AXES) <= set(mesh.axis_names):
        return None
    return mesh


def platform() -> str:
    """Of the mesh's devices, which may be those of a machine that this one only compiles for; else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def sequence_parts() -> int:
    """Over how many devices the mesh in force spreads a sequence."""
    mesh = mesh_in_force()
    return 1 if mesh is None else mesh.shape[AXIS]


def on_mesh(kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None) -> jax.Array:
    """kernel(q, k, v, segment) on each device's part. T must divide over `sequence`; a batch that does not is whole."""
    mesh = mesh_in_force()
    if mesh is None:
        return kernel(q, k, v, segment)
    queries = spec_for(q.shape, ("batch", "tokens", "heads", "head_size"), mesh, name="queries")
    keys = spec_for(k.shape, ("batch", "tokens", "kv_heads", "head_size"), mesh, name="keys")
    rows = PartitionSpec(*queries[:2])
    arrays, specs = [q, k, v], [queries, keys, keys]
    if segment is not None:
        arrays, specs = [*arrays, segment], [*specs, rows]

    def local(q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None = None) -> jax.Array:
        return kernel(q, k, v, segment)

    # Pallas kernels and loops of our own say nothing about what varies over which axis, so it is not checked.
    return jax.shard_map(local, in_specs=tuple(specs), out_specs=queries, check_vma=False)(*arrays)


def ring(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment: jax.Array | None,
    pattern: Pattern,
    *,
    scale: float,
    tile: int = 512,
) -> jax.Array:
    """Blockwise attention [B,T,H,K] over whatever mesh is in force, a ring along `sequence`; without one, in place."""
    devices = sequence_parts()
    T, (size, count) = q.shape[1], tiling(q.shape[1], devices, tile)
    q, k, v, segment = _padded((q, k, v, segment), devices * size * count)
    axis = AXIS if devices > 1 else None
    kernel = partial(blockwise, pattern=pattern, scale=scale, tile=tile, axis=axis, devices=devices)
    return on_mesh(kernel, q, k, v, segment)[:, :T]


def all_to_all(kernel: Kernel, q: jax.Array, k: jax.Array, v: jax.Array, segment: jax.Array | None) -> jax.Array:
    """kernel(q, k, v, segment) [B,T,H,K] on whole rows of each device's share of the heads."""
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
    """Whether so many key/value heads can be dealt out along `sequence`, after `tensor` has taken its part."""
    mesh = mesh_in_force()
    return mesh is None or heads % (mesh.shape["tensor"] * mesh.shape[AXIS]) == 0


def _padded(arrays: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    """Zeros behind, along T; segment 0 is padding in any case."""
    pad = lambda x: jnp.pad(x, ((0, 0), (0, length - x.shape[1])) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
    return tuple(x if x is None or x.shape[1] == length else pad(x) for x in arrays)
