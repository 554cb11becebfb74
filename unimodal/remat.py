"""What the backward pass keeps of a layer, by name, and what it computes again.

A tensor is named where it is made: `named(x, "query")`. A policy says which names are kept. What has no name, or one
that is not kept, is computed again from what is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

KERNEL = (
    "kernel"  # what a fused kernel's backward pass reads of its forward pass: the result, the logarithms of its sums
)
KEPT = ("query", "key", "value", KERNEL, "mlp_gate", "mlp_up", "branch", "dropout")
# The forward call of cuDNN, which has no names of its own.
FUSED = ("dot_product_attention_fwd", "dot_product_attention_fwd_wrapper")

Policy = Callable[..., Any]


def named(x: jax.Array, name: str, flat: int = 0) -> jax.Array:
    """Name a tensor for the policies. Nothing is computed.

    flat: keep so many of the last dimensions as one. A TPU pads the last dimension of what it keeps to 128.
    """
    if flat < 2:
        return checkpoint_name(x, name)
    return checkpoint_name(x.reshape(*x.shape[:-flat], -1), name).reshape(x.shape)


def light(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Keep products and what fused kernels need. Norms, activations, rotations and a softmax are computed again."""
    if primitive.name == "name":
        return parameters["name"] in KEPT
    return primitive.name in FUSED


REMAT: dict[str, Policy | None] = {
    "none": None,  # keep every intermediate for the backward pass
    "light": light,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the weight products, redo attention
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only what passes between the layers
}
