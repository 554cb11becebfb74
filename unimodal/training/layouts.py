"""Checkpoints of stacked layers for a model that unrolls them, and the other way round (`backbones.*.scan`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

_UNROLLED = re.compile(r"(.*\blayers)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Held:
    """Where a checkpoint holds an array: under one name; as one layer of a stack; or under a name for each layer."""

    shape: str  # as "float32[3, 4]", of the array that is wanted
    names: tuple[str, ...]
    layer: int | None = None  # of the stack that the one name stands for
    stack: bool = False  # the arrays of all names are to be stacked

    @property
    def as_it_is(self) -> bool:
        return self.layer is None and not self.stack


def held(shapes: Mapping[str, str], wanted: Iterable[str]) -> dict[str, Held]:
    """What a checkpoint whose arrays are called as in `shapes` holds, under the names that are `wanted` where it can be.

    What nobody wants, and what fits neither way, stays under its own name.
    """
    wanted = set(wanted)
    matches = [match for name in wanted - shapes.keys() if (match := _UNROLLED.fullmatch(name))]
    ways = {f"{match[1]}.{match[3]}": match for match in matches}
    found: dict[str, Held] = {}
    layers: dict[str, dict[int, str]] = {}
    for name, shape in shapes.items():
        (dtype, sizes), unrolled = _parts(shape), _UNROLLED.fullmatch(name)
        if name in ways and name not in wanted and sizes:
            before, after = ways[name][1], ways[name][3]
            for layer in range(sizes[0]):
                found[f"{before}.{layer}.{after}"] = Held(f"{dtype}{sizes[1:]}", (name,), layer)
        elif unrolled and name not in wanted and (stacked := f"{unrolled[1]}.{unrolled[3]}") in wanted:
            layers.setdefault(stacked, {})[int(unrolled[2])] = name
        else:
            found[name] = Held(shape, (name,))
    for stacked, names in layers.items():
        of_layers = [names.get(layer, "") for layer in range(len(names))]
        if len({shapes.get(name) for name in of_layers}) == 1 and all(of_layers):
            dtype, sizes = _parts(shapes[of_layers[0]])
            found[stacked] = Held(f"{dtype}{[len(names), *sizes]}", tuple(of_layers), stack=True)
        else:
            found |= {name: Held(shapes[name], (name,)) for name in names.values()}
    return found


def shapes_as(shapes: Mapping[str, str], wanted: Iterable[str]) -> dict[str, str]:
    """The shapes of a checkpoint under the names that are `wanted`, as `held` finds them."""
    return {name: each.shape for name, each in held(shapes, wanted).items()}


def to_read(wanted: Mapping[str, Any], there: Mapping[str, Held], shapes: Mapping[str, str]) -> dict[str, Any]:
    """The arrays to restore, in the shapes of the checkpoint and sharded as those that are made of them."""
    found: dict[str, Any] = {}
    for name, leaf in wanted.items():
        each = there[name]
        for raw in each.names:
            if each.as_it_is:
                found[raw] = leaf
                continue
            dtype, sizes = _parts(shapes[raw])
            mesh, spec = leaf.sharding.mesh, tuple(leaf.sharding.spec)
            spec = spec[1:] if each.stack else (None, *spec)
            place = NamedSharding(mesh, PartitionSpec(*spec))
            found[raw] = jax.ShapeDtypeStruct(tuple(sizes), jnp.dtype(dtype), sharding=place)
    return found


def made(wanted: Mapping[str, Any], there: Mapping[str, Held], read: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What is wanted, of the arrays that were read."""
    other = {name: leaf for name, leaf in wanted.items() if not there[name].as_it_is}

    def one(each: Held, read: Mapping[str, jax.Array]) -> jax.Array:
        if each.stack:
            return jnp.stack([read[name] for name in each.names])
        return read[each.names[0]][each.layer]

    def make(read: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: one(there[name], read) for name in other}

    taken = {raw: read[raw] for name in other for raw in there[name].names}
    changed = jax.jit(make, out_shardings={name: leaf.sharding for name, leaf in other.items()})(taken) if other else {}
    return {name: changed[name] if name in changed else read[there[name].names[0]] for name in wanted}


def _parts(shape: str) -> tuple[str, list[int]]:
    """ "float32[3, 4]" → float32, [3, 4]."""
    dtype, _, sizes = shape.rstrip("]").partition("[")
    return dtype, [int(size) for size in sizes.split(",") if size.strip()]
