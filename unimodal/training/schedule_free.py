"""The average that schedule-free training keeps (Defazio 2024), in a state and in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from unimodal.training import layouts
from unimodal.training.parameters import Parameter
from unimodal.training.rounding import bounded, full

_INNER = "optimizer.inner."  # then the parameter, then what optax's state calls it


def average(p: Parameter, trained: jax.Array, b1: jax.Array, z: jax.Array) -> jax.Array:
    """x of y = (1 - b1) z + b1 x, in y's precision. y: the parameter as it is trained. b1: a number, or one for each layer."""
    b1 = jnp.reshape(b1, (*b1.shape, *[1] * (z.ndim - b1.ndim)))
    value = (full(trained) - (1.0 - b1) * z) / b1
    return bounded(p, value, value).astype(trained.dtype)


def averages_in(shapes: Mapping[str, str], parameters: Iterable[Parameter]) -> set[str]:
    """Those of the parameters, by name, of which a checkpoint with arrays of these names keeps such an average."""
    wanted = {f"{_INNER}{p.name}.z": p.name for p in parameters if not p.written}
    there = layouts.shapes_as(shapes, wanted)
    return {name for z, name in wanted.items() if z in there}


def read_averages(
    read: Callable[[Mapping[str, Any]], Mapping[str, jax.Array]], parameters: Iterable[Parameter]
) -> dict[str, jax.Array]:
    """The averages of parameters by name, like the parameters themselves. read: name → array of a checkpoint."""

    def places(p: Parameter) -> dict[str, Any]:
        one = NamedSharding(p.value.sharding.mesh, PartitionSpec())
        layers = p.value.shape[:1] if p.stacked else ()
        return {
            f"parameters.{p.name}": jax.ShapeDtypeStruct(p.value.shape, p.value.dtype, sharding=p.value.sharding),
            f"{_INNER}{p.name}.b1": jax.ShapeDtypeStruct(layers, jnp.float32, sharding=one),
            f"{_INNER}{p.name}.z": jax.ShapeDtypeStruct(p.value.shape, jnp.float32, sharding=p.value.sharding),
        }

    wanted = {p.name: (p, places(p)) for p in parameters}
    found = read({name: place for _, each in wanted.values() for name, place in each.items()}) if wanted else {}
    return {own: average(p, *(found[name] for name in each)) for own, (p, each) in wanted.items()}
