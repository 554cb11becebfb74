"""Rows of a batch in chunks, for objectives that compare each row with all others."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

CHUNK = 1024  # rows compared with all others at a time


def rows_in_chunks(judge: Callable[[Any], Any], rows: Mapping[str, jax.Array], chunk: int = CHUNK) -> Any:
    """Run `judge` on some rows at a time, each [C, ...] of `rows` [B, ...]: a pytree of [B, ...].

    What a chunk makes is computed again in the backward pass rather than kept. So where `judge` compares its rows with
    the whole batch, memory grows with chunk·B and not with B². Of n chunks, chunk i takes rows i, i+n, i+2n, … so every
    device holds an equal part of each. n is the least divisor of B whose chunks are no longer than `chunk`.
    """
    count = next(iter(rows.values())).shape[0]
    steps = next(n for n in range(1, count + 1) if count % n == 0 and count // n <= max(1, chunk))
    if steps == 1:
        return judge(rows)

    def step(carry: None, piece: Any) -> tuple[None, Any]:
        return carry, judge(piece)

    pieces = {name: jnp.moveaxis(x.reshape(count // steps, steps, *x.shape[1:]), 1, 0) for name, x in rows.items()}
    _, stacked = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), None, pieces)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(count, *x.shape[2:]), stacked)
