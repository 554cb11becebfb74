"""Meshes, and the table that puts logical axes on mesh axes.

Every parameter names its logical axes where it is made (metadata `axes=("embed", "mlp")` on its `nnx.Variable`). One
table, `RULES`, maps them to the mesh axes `data, fsdp, tensor, sequence`. A stacked parameter has one dimension more
than names: the leading one is `layers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from unimodal.errors import UsageError

MESH_AXES = ("data", "fsdp", "tensor", "sequence")
BATCH, TOKENS = ("data", "fsdp"), "sequence"  # what splits a batch: its examples, and the tokens of each

Rules = Mapping[str, str | tuple[str, ...] | None]

RULES: Rules = {
    # parameters
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocabulary": "tensor",
    "channels": "fsdp",
    "classes": None,
    "codes": None,
    "head_size": None,
    "layers": None,
    "patch": None,
    "place": None,
    "rank": None,
    "taps": None,
    # activations
    "batch": BATCH,
    "tokens": TOKENS,
    "hidden": None,
}

# These axes must divide: falling back to replication would silently change what tensor parallelism costs.
_MUST_DIVIDE = ("heads", "kv_heads", "mlp")
# A larger parameter that could be sharded must be. Replicating a smaller one costs next to nothing.
LARGE_BYTES = 4 * 2**20


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices. At most one size may be -1: it takes the devices that the others leave.

    Raises UsageError if the sizes ask for more devices than there are, or do not divide them.
    """
    sizes: dict[str, int] = dict(zip(MESH_AXES, (data, fsdp, tensor, sequence), strict=True))
    devices = list(jax.devices() if devices is None else devices)
    bad = {axis: size for axis, size in sizes.items() if size != -1 and size < 1}
    if bad:
        raise UsageError(f"mesh sizes must be positive, or -1 for 'the rest', but {_spell(bad)}")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UsageError(f"only one mesh axis may be -1, but {' and '.join(free)} are")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > len(devices):
        raise UsageError(f"mesh {_spell(sizes)} needs {fixed} devices, but there are {len(devices)}")
    if free:
        if len(devices) % fixed:
            raise UsageError(f"mesh {_spell(sizes)}: {fixed} does not divide the {len(devices)} devices")
        sizes[free[0]] = len(devices) // fixed
    count = math.prod(sizes.values())
    shape = tuple(sizes.values())
    grid = _laid_out(shape, devices) if count == len(devices) else np.asarray(devices[:count]).reshape(shape)
    return Mesh(grid, MESH_AXES)


def _laid_out(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Arrange devices as a grid of `shape`, with its axes along the rings of the interconnect.

    Slices of TPUs, and nodes of GPUs, are joined by the slower network alone. They lie along `data` as far as possible,
    then along `fsdp`, and so on.
    """
    left = len({getattr(device, "slice_index", 0) for device in devices})
    if left == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across = []
    for size in shape:
        across.append(math.gcd(size, left))
        left //= across[-1]
    within = [size // slices for size, slices in zip(shape, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def spec_for(
    shape: Sequence[int], axes: Sequence[str], mesh: Any, *, name: str = "", rules: Rules = RULES
) -> PartitionSpec:
    """Give the PartitionSpec of an array of `shape` with the logical `axes`.

    A dimension that its mesh axes do not divide stays whole. For heads and MLP width that is an error instead.
    Raises UsageError for an unknown logical axis or two logical axes on one mesh axis.
    """
    if len(shape) == len(axes) + 1:
        axes = ("layers", *axes)
    if len(shape) != len(axes):
        raise UsageError(f"parameter {name} has shape {tuple(shape)} but logical axes {tuple(axes)}")
    entries: list[tuple[str, ...] | None] = []
    used: dict[str, str] = {}
    for size, axis in zip(shape, axes, strict=True):
        if axis not in rules:
            raise UsageError(f"parameter {name} names the logical axis {axis!r}, which is not among {', '.join(rules)}")
        target = rules[axis] or ()
        # Leave out mesh axes of size 1: the spec then names real splits only, and prints short.
        targets = tuple(a for a in ((target,) if isinstance(target, str) else target) if mesh.shape.get(a, 1) > 1)
        parts = math.prod(mesh.shape[a] for a in targets)
        if size % parts:
            if axis in _MUST_DIVIDE:
                raise UsageError(f"{axis}={size} ({name}) is not divisible by mesh {'·'.join(targets)}={parts}")
            targets = ()
        for mesh_axis in targets:
            if mesh_axis in used:
                raise UsageError(
                    f"{name}: logical axes {used[mesh_axis]!r} and {axis!r} both lie on mesh axis {mesh_axis!r}"
                )
            used[mesh_axis] = axis
        entries.append(targets or None)
    return PartitionSpec(*(e[0] if e and len(e) == 1 else e for e in entries))


def shardings(tree: Any, mesh: Mesh, *, rules: Rules = RULES) -> Any:
    """Replace the leaves of `tree` (arrays or ShapeDtypeStructs of modules, optimizer states, …) by NamedShardings.

    Variables are placed by their `axes`. A leaf without axes is replicated. Raises UsageError that names a large
    parameter if the mesh could shard it, but it would be replicated.
    """

    def place(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        value = leaf.get_value()
        name = path_name(path)
        axes = leaf.get_metadata().get("axes")
        spec = PartitionSpec() if axes is None else spec_for(value.shape, axes, mesh, name=name, rules=rules)
        _refuse_large_replicated(name, value, spec, mesh)
        return leaf.replace(NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def initialise(make: Any, mesh: Mesh, *args: Any, rules: Rules = RULES) -> Any:
    """Run `make(*args)` with every array created in its shards, so that none is ever whole on one device."""
    out = shardings(jax.eval_shape(make, *args), mesh, rules=rules)
    with jax.set_mesh(mesh):
        return jax.jit(make, out_shardings=out)(*args)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Split the batch dimension, which follows `leading` unsplit ones, over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(*([None] * leading), BATCH))


def batch_parts(mesh: Any) -> int:
    """Count the parts that this mesh splits a batch into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(mesh: Mesh, batch: int, micro: int = 1) -> list[int]:
    """List the rows of a batch that this process's devices hold, in the order that `from_local_rows` takes.

    Processes along `tensor` or `sequence` hold the same rows, so they read the same ones. `micro`: how many
    micro-batches the batch is taken in. Raises UsageError if the mesh has none of this process's devices.
    """
    share = batch // micro // batch_parts(mesh)
    return [
        (step * batch_parts(mesh) + part) * share + row
        for step in range(micro)
        for part in _local_parts(mesh)
        for row in range(share)
    ]


def from_local_rows(rows: Mapping[str, np.ndarray], mesh: Mesh, micro: int = 1) -> dict[str, jax.Array]:
    """Make global arrays `[B, …]`, or `[micro, B/micro, …]`, of this process's rows `[n, …]` (see `local_rows`).

    Arrays of strings, such as ids, stay on the host and are left out.
    """
    parts, leading = _local_parts(mesh), int(micro > 1)
    where = batch_sharding(mesh, leading=leading)

    def placed(local: np.ndarray) -> jax.Array:
        share = len(local) // micro // len(parts)
        blocks = local.reshape(micro, len(parts), share, *local.shape[1:])

        def block(index: Any) -> np.ndarray:
            here = blocks[:, parts.index((index[leading].start or 0) // share)]
            return here if leading else here[0]

        shape = (micro,) * leading + (share * batch_parts(mesh), *local.shape[1:])
        return jax.make_array_from_callback(shape, where, block)

    return {name: placed(local) for name, local in rows.items() if local.dtype.kind not in "US"}


def _local_parts(mesh: Mesh) -> list[int]:
    """List the `batch_parts` that this process's devices hold."""
    count = batch_parts(mesh)
    held = [index for index in batch_sharding(mesh).addressable_devices_indices_map((count,)).values() if index]
    if not held:
        raise UsageError(f"the mesh of {mesh.size} devices has none of process {jax.process_index()}'s")
    return sorted({index[0].start or 0 for index in held})


def copied(x: jax.Array, batch: int, *axes: str, dtype: DTypeLike) -> jax.Array:
    """Gather a parameter `[...]` of logical `axes` as copies `[R,Q,...]` of `dtype`, one per part of batch and tokens.

    Each device holds one copy, so this takes the memory of one whole parameter. Its gradient is summed over devices and
    scattered to their shards here, once, and not at every use, such as in a loop. R is 1 where `batch` does not divide.
    Outside `jax.set_mesh`, and on one device, the result is [1,1,...].
    """
    x = x.astype(dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or not set(MESH_AXES) <= set(mesh.axis_names):
        return x[None, None]
    spec = spec_for(x.shape, axes, mesh, name="copies")
    whole = [None if entry in BATCH else entry for entry in spec]
    if batch % batch_parts(mesh):
        copies = jax.lax.broadcast(x, (1, mesh.shape[TOKENS]))
        return jax.lax.with_sharding_constraint(copies, PartitionSpec(None, TOKENS, *whole))
    split = [(dimension, entry) for dimension, entry in enumerate(spec) if entry in BATCH]

    def local(x: jax.Array) -> jax.Array:
        for dimension, entry in split:
            x = jax.lax.all_gather(x, entry, axis=dimension, tiled=True)
        return x[None, None]

    return jax.shard_map(local, in_specs=spec, out_specs=PartitionSpec(BATCH, TOKENS, *whole))(x)


def constrain(x: jax.Array, *axes: str, rules: Rules = RULES) -> jax.Array:
    """Tell the compiler how an activation is split. Outside `jax.set_mesh`, do nothing: modules work without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not set(MESH_AXES) & set(mesh.axis_names) or mesh.manual_axes:
        return x
    # Leave a dimension that does not divide to the compiler (UNCONSTRAINED) instead of forcing it whole.
    spec = PartitionSpec(
        *(
            entry if rules[axis] is None or entry is not None else PartitionSpec.UNCONSTRAINED
            for axis, entry in zip(axes, spec_for(x.shape, axes, mesh, name="activation", rules=rules), strict=True)
        )
    )
    return jax.lax.with_sharding_constraint(x, spec)


def whole_in_time(x: jax.Array) -> jax.Array:
    """Keep T of [B,T,C] unsplit around a convolution.

    If T is split and the mesh has another axis, XLA's partitioner (jaxlib 0.10) makes the kernel's gradient twice too large.
    """
    return constrain(x, "batch", "place", "hidden")


def parameter_table(tree: Any, mesh: Mesh, *, rules: Rules = RULES) -> list[dict[str, Any]]:
    """One row per parameter: name, shape, dtype, axes, spec, bytes, bytes_per_device."""
    rows = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]:
        if not isinstance(leaf, nnx.Param):
            continue
        value, axes = leaf.get_value(), leaf.get_metadata().get("axes", ())
        name = path_name(path)
        spec = spec_for(value.shape, axes, mesh, name=name, rules=rules) if axes else PartitionSpec()
        size = math.prod(value.shape) * value.dtype.itemsize
        rows.append(
            dict(
                name=name,
                shape=tuple(value.shape),
                dtype=str(value.dtype),
                axes=("layers", *axes) if len(axes) < len(value.shape) and axes else tuple(axes),
                spec=str(tuple(spec)),
                bytes=size,
                bytes_per_device=size // _parts(spec, mesh),
            )
        )
    return rows


def parameter_count(table: Sequence[Mapping[str, Any]]) -> int:
    """Add up the numbers of a `parameter_table`."""
    return sum(math.prod(row["shape"]) for row in table)


def path_name(path: Any) -> str:
    """Spell a JAX key path, as in `backbones.shared.layers.attention.query.kernel`."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    # The array of a Variable is one step below it, under "value".
    return ".".join(names[:-1] if names[-1:] == ["value"] else names)


def _refuse_large_replicated(name: str, value: Any, spec: PartitionSpec, mesh: Mesh) -> None:
    size = math.prod(value.shape) * value.dtype.itemsize
    could = mesh.shape["fsdp"] * mesh.shape["tensor"]
    if size > LARGE_BYTES and could > 1 and _parts(spec, mesh) == 1:
        raise UsageError(
            f"parameter {name} {tuple(value.shape)} of {size / 2**20:.0f} MiB would be replicated on a mesh with "
            f"fsdp={mesh.shape['fsdp']}, tensor={mesh.shape['tensor']}; give it logical axes that divide"
        )


def _parts(spec: PartitionSpec, mesh: Mesh) -> int:
    flat = [a for entry in spec if entry for a in ((entry,) if isinstance(entry, str) else entry)]
    return math.prod(mesh.shape[a] for a in flat)


def _spell(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items())
