"""Weights in eight bits: each output channel of a matrix as int8 and one scale (symmetric, per channel; Nagel 2021, §2.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimodal.quantization import quantize
from unimodal.sharding import path_name
from unimodal.training.parameters import described

LEAST = 1024  # numbers of an array below which eight bits save nothing worth an error


class Int8(NamedTuple):
    """An array w as `whole`·`scale`: int8 of its shape, and float32 that broadcasts to it."""

    whole: np.ndarray
    scale: np.ndarray


def in_int8(model: Any) -> list[np.ndarray | Int8]:
    """The arrays of a model in the order of `jax.tree.leaves`. Matrices and tables are in eight bits, but for small ones.

    A channel is a place along an array's last dimension, in each layer where several are stacked. Its largest number is
    127, so nothing is cut off, and an error is at most half a step of scale.
    """
    matrices = {p.name: p for p in described(nnx.state(model, nnx.Param))}
    found: list[np.ndarray | Int8] = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        array = np.asarray(leaf)
        p = matrices.get(path_name(path))
        if p is None or p.kind == "vector" or array.size < LEAST or not jnp.issubdtype(array.dtype, jnp.floating):
            found.append(array)
            continue
        values, scale = quantize(jnp.asarray(array), jnp.int8, range(int(p.stacked), array.ndim - 1))
        found.append(Int8(np.asarray(values), np.asarray(scale)))
    return found


def whole(array: Any, dtype: Any) -> Any:
    """The array that `Int8` stands for; any other as it is."""
    return (array.whole.astype(jnp.float32) * array.scale).astype(dtype) if isinstance(array, Int8) else array
