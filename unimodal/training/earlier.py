"""Checkpoints from before every parameter had an optimizer state of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def names_then(wanted: Mapping[str, Any], shapes: Mapping[str, str]) -> dict[str, str] | None:
    """Map each `wanted` array of today to its name in an earlier checkpoint of AdamW, whose arrays are in `shapes`.

    Its one count of steps served every parameter, and serves each now. None for any other checkpoint.
    """
    moments = re.compile(r"(optimizer(?:\.\d+)+)\.mu\.")
    prefix = next((found[1] for name in shapes if (found := moments.match(name))), None)
    if prefix is None or not any(name.endswith(".0.nu") for name in wanted):
        return None

    def then(name: str) -> str:
        own = re.fullmatch(r"optimizer\.inner\.(.+)\.0\.(count|mu|nu)", name)
        if own is None:
            return "step" if name == "optimizer.step" else name
        return f"{prefix}.count" if own[2] == "count" else f"{prefix}.{own[2]}.{own[1]}"

    return {name: then(name) for name in wanted}


def to_read(wanted: Mapping[str, Any], then: Mapping[str, str], shapes: Mapping[str, str]) -> dict[str, Any]:
    """The arrays of an earlier checkpoint to restore, as they were saved."""
    found = {}
    for name, leaf in wanted.items():
        dtype, shape = re.fullmatch(r"(\w+)\[(.*)\]", shapes[then[name]]).groups()  # pyright: ignore[reportOptionalMemberAccess]
        sizes = tuple(int(size) for size in shape.split(",") if size)
        where = leaf.sharding if sizes == leaf.shape else NamedSharding(leaf.sharding.mesh, PartitionSpec())
        found.setdefault(then[name], jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=where))
    return found


def as_now(wanted: Mapping[str, Any], then: Mapping[str, str], found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Make the `wanted` arrays from those that were read. Moments become float32, counts one for each layer."""

    def made(name: str, leaf: Any) -> jax.Array:
        # A copy, for the state's buffers are given away one by one, and the count stands in for many.
        convert = lambda x: jnp.broadcast_to(x, leaf.shape).astype(leaf.dtype).copy()  # noqa: E731
        return jax.jit(convert, out_shardings=leaf.sharding)(found[then[name]])

    return {name: made(name, leaf) if then[name] != name else found[name] for name, leaf in wanted.items()}
