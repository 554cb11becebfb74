"""Model FLOPs: what the mathematics of a training step needs, whatever the compiler makes of it.

    3 · (every matrix product and convolution of the forward pass, of attention only the pairs that are shown)

The backward pass takes each product twice, once for each operand's gradient. For a transformer that is the usual
6 · N · tokens, N the parameters of its products (looking up an embedding is none; the product with the output table is
one), plus 12 · H · K a layer for each pair (query, key) that layout, window and global tokens show: T² of a row where all
see all, T · (T + 1) / 2 where it is causal (Kaplan 2020, §2.1; Chowdhery 2022, appendix B). Recomputation counts for
nothing, frozen parameters and packing are not taken off.

Counted on the traced forward pass, so it knows no model by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from unimodal.backbone import BackboneConfig
from unimodal.experiment import Experiment
from unimodal.model import Model, watch
from unimodal.objectives.terms import as_scalars
from unimodal.task import Task
from unimodal.tokens import Tokens
from unimodal.visibility import Pattern


def model_flops(experiment: Experiment, names: Sequence[str]) -> float:
    """FLOPs of one step of the named tasks over all devices."""
    backbones = {n: replace(c, attention="xla", remat="none") for n, c in experiment.backbones.items()}
    plain = replace(experiment, backbones=backbones)
    return sum(3 * forward_flops(plain.model, task) for task in experiment.tasks if task.name in names)


def forward_flops(model: Model, task: Task) -> float:
    """FLOPs of the loss of one batch; `model` may be shapes, and must not attend by kernels."""
    hidden_from_view: list[float] = []

    def note(tokens: Tokens, config: BackboneConfig) -> None:
        rows, length, _ = tokens.x.shape
        whole = 4.0 * rows * length**2 * config.heads * config.K  # of one layer
        for window, layers in ((config.window, sum(config.windowed)), (None, config.windowed.count(False))):
            pattern = Pattern(tokens.layout, window, config.global_tokens)
            hidden_from_view.append(layers * whole * (1 - visible_share(pattern)))

    def loss(model: Model, batch: Any, key: jax.Array) -> jax.Array:
        watch(model, note)
        return as_scalars(*task.loss(model, batch, key=key, step=jnp.int32(0)))[0]

    batch = {k: jax.ShapeDtypeStruct((task.batch_size, *a.shape), a.dtype) for k, a in task.inputs(model).spec.items()}
    traced = jax.make_jaxpr(loss)(model, batch, jax.eval_shape(lambda: jax.random.key(0)))
    return jaxpr_flops(traced.jaxpr) - sum(hidden_from_view)


def visible_share(pattern: Pattern) -> float:
    """The part of all T² pairs (query, key) that the pattern shows, exactly; in time and memory linear in T."""
    limit, query = pattern.limit.astype(np.int64), np.arange(pattern.length, dtype=np.int64)
    seen = limit
    if pattern.narrow:
        assert pattern.window is not None
        first = np.maximum(query - pattern.window + 1, 0)
        near = np.minimum(query + pattern.window, limit) - first
        # Global tokens that the window does not reach all lie before it, as those after it would be global queries.
        far = np.minimum(pattern.global_tokens, first)
        seen = np.where(query < pattern.global_tokens, limit, near + far)
    return int(seen.sum()) / pattern.length**2


def jaxpr_flops(jaxpr: Jaxpr) -> float:
    """FLOPs of all products and convolutions, a scan's body times its length; of branches the dearest."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        into: list[Any] = [variable.aval for variable in equation.invars]
        out: list[Any] = [variable.aval for variable in equation.outvars]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            total += 2.0 * out[0].size * math.prod(into[0].shape[d] for d in contracted)
        elif name == "conv_general_dilated":
            kernel = into[1].shape
            features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * out[0].size * math.prod(kernel) / features
        elif name == "cond":
            total += max(jaxpr_flops(branch.jaxpr) for branch in parameters["branches"])
        else:
            times = parameters["length"] if name == "scan" else 1
            total += times * sum(jaxpr_flops(inner) for inner in _inside(parameters))
    return total


def _inside(parameters: dict[str, Any]) -> list[Jaxpr]:
    values = [x for value in parameters.values() for x in (value if isinstance(value, tuple | list) else (value,))]
    return [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values if isinstance(v, ClosedJaxpr | Jaxpr)]
