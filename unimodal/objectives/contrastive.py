"""Contrastive objectives between two views a and b of each example. The rest of the batch are the negatives.

The batch is the *global* one. Under `jit`, with the batch sharded over devices, XLA gathers what the `[B,B]` products need, so
no collective is written here. `valid_B` marks real examples. Padding is nobody's negative and has loss 0.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from unimodal.objectives.reduction import Metrics, Scalar, as_scalar, ratio
from unimodal.objectives.rows import CHUNK, rows_in_chunks
from unimodal.objectives.terms import WholeBatch


def unit(x: jax.Array) -> jax.Array:
    """Scale vectors `[..., D]` to length 1, in float32. Zero stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def _embed(x_BD: jax.Array, valid_B: jax.Array) -> jax.Array:
    return unit(jnp.where(valid_B[:, None], x_BD, 0.0))


def _products(a_BD: jax.Array, b_BD: jax.Array) -> jax.Array:
    # Full precision: a temperature of 100 turns a bfloat16 product's error into whole nats.
    return jnp.einsum("id,jd->ij", a_BD, b_BD, precision=jax.lax.Precision.HIGHEST)


def _all_valid(a_BD: jax.Array, valid_B: jax.Array | None) -> jax.Array:
    return jnp.ones(a_BD.shape[:1], bool) if valid_B is None else valid_B.astype(bool)


def _choose(logits: jax.Array, positive_B: jax.Array, allowed: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Score the positive among the allowed along `axis`: its cross-entropy, and 1 if it alone is largest, each `[B]`."""
    nats = jax.nn.logsumexp(logits, axis=axis, where=allowed) - positive_B
    # Not beaten, rather than as large: no comparison with NaN is true, and what is NaN must not count as right.
    rivals = (allowed & ~(jnp.expand_dims(positive_B, axis) > logits)).sum(axis=axis, dtype=jnp.int32)
    return nats, rivals == 1


def _report(loss_B: jax.Array, a_hit_B: jax.Array, b_hit_B: jax.Array, valid_B: jax.Array) -> tuple[jax.Array, Metrics]:
    loss = jnp.where(valid_B, loss_B, 0.0)
    return loss, {
        "objective": loss.sum(),
        "examples": valid_B.astype(jnp.float32).sum(),
        "correct_a_to_b": (a_hit_B & valid_B).astype(jnp.float32).sum(),
        "correct_b_to_a": (b_hit_B & valid_B).astype(jnp.float32).sum(),
    }


def _both_ways(
    a_BD: jax.Array,
    b_BD: jax.Array,
    ids_B: jax.Array | None,
    valid_B: jax.Array,
    judge: Callable[[jax.Array, jax.Array, jax.Array], Any],
    chunk: int,
    more_ND: jax.Array | None = None,
    more_ids_N: jax.Array | None = None,
) -> Any:
    """Run `judge(cosines [C,B], same [C,B], negative [C,B])` on the rows of a against all of b, and of b against all of a.

    `same` marks each row's own partner, `negative` what it must be told from. Rows come `chunk` at a time, so memory
    does not grow with B². more_ND: further negatives of a, which stand behind those of b, but for rows of an equal id.
    """
    a, b = _embed(a_BD, valid_B), _embed(b_BD, valid_B)
    more = None if more_ND is None else unit(more_ND)
    place = jnp.arange(a.shape[0])
    ids = place if ids_B is None else ids_B

    def judge_some(some: Mapping[str, jax.Array]) -> Any:
        same = some["place"][:, None] == place[None]
        negative = ~same & some["valid"][:, None] & valid_B[None] & (some["ids"][:, None] != ids[None])
        there, back = _products(some["a"], b), judge(_products(some["b"], a), same, negative)
        if more is None:
            return judge(there, same, negative), back
        others = jnp.broadcast_to(some["valid"][:, None], (there.shape[0], more.shape[0]))
        if more_ids_N is not None:
            others &= some["ids"][:, None] != more_ids_N[None]
        there = jnp.concatenate([there, _products(some["a"], more)], axis=1)
        found = judge(
            there,
            jnp.concatenate([same, jnp.zeros_like(others)], axis=1),
            jnp.concatenate([negative, others], axis=1),
        )
        return found, back

    return rows_in_chunks(judge_some, {"a": a, "b": b, "place": place, "ids": ids, "valid": valid_B}, chunk)


def clip(
    a_BD: jax.Array,
    b_BD: jax.Array,
    scale: Scalar,
    *,
    ids_B: jax.Array | None = None,
    valid_B: jax.Array | None = None,
    more_ND: jax.Array | None = None,
    more_ids_N: jax.Array | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, Metrics]:
    """Compute symmetric InfoNCE (Radford et al. 2021, figure 3).

    Args:
        a_BD: embeddings of the first view, at any length: they are normalised here.
        b_BD: embeddings of the second view, likewise.
        scale: inverse temperature, already exponentiated (the paper learns its logarithm and clips the scale at 100).
        ids_B: integers. Examples with equal ids, such as a repeated caption, are not each other's negatives.
        valid_B: False marks padding.
        more_ND: further embeddings that are negatives of every row of the first view.
        more_ids_N: integers of these, as ids_B; a row of an equal id is no negative of them.
        chunk: rows compared with all others at a time. Memory grows with chunk·B, not with B².

    Returns:
        loss `[B]` float32 in nats, half from each direction, and sums `objective`, `examples`, `correct_a_to_b`,
        `correct_b_to_a` (a tie counts as wrong, so collapsed embeddings score 0).
    """
    valid = _all_valid(a_BD, valid_B)

    def judge(cosines: jax.Array, same: jax.Array, negative: jax.Array) -> Any:
        logits = cosines * as_scalar(scale)
        positive = jnp.where(same, logits, 0.0).sum(axis=1)
        return _choose(logits, positive, same | negative, axis=1)

    (a_nats, a_hit), (b_nats, b_hit) = _both_ways(a_BD, b_BD, ids_B, valid, judge, chunk, more_ND, more_ids_N)
    return _report(0.5 * (a_nats + b_nats), a_hit, b_hit, valid)


def siglip(
    a_BD: jax.Array,
    b_BD: jax.Array,
    scale: Scalar,
    bias: Scalar,
    *,
    ids_B: jax.Array | None = None,
    valid_B: jax.Array | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, Metrics]:
    """Compute the pairwise sigmoid loss (Zhai et al. 2023, algorithm 1): each of the B² pairs counts by itself.

    The loss of example i is the sum over row i, so its mean over the batch is the paper's. `scale` is exponentiated
    already (paper: starts at 10) and `bias` is added (paper: starts at -10). Other arguments, metrics: see `clip`.
    """
    valid = _all_valid(a_BD, valid_B)

    def judge(cosines: jax.Array, same: jax.Array, negative: jax.Array) -> Any:
        logits = cosines * as_scalar(scale) + as_scalar(bias)
        nats = jax.nn.softplus(jnp.where(same, -logits, logits))
        positive = jnp.where(same, logits, 0.0).sum(axis=1)
        _, hit = _choose(logits, positive, same | negative, axis=1)
        return jnp.where(same | negative, nats, 0.0).sum(axis=1), hit

    # The rows of b see the same pairs again: they count for the accuracy alone.
    (nats, a_hit), (_, b_hit) = _both_ways(a_BD, b_BD, ids_B, valid, judge, chunk)
    return _report(nats, a_hit, b_hit, valid)


def nt_xent(
    a_BD: jax.Array,
    b_BD: jax.Array,
    temperature: Scalar = 0.1,
    *,
    ids_B: jax.Array | None = None,
    valid_B: jax.Array | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, Metrics]:
    """Compute NT-Xent of SimCLR (Chen et al. 2020, eq. 1). The negatives are both views of all other examples.

    The loss of an example is the mean of its two views', so its mean over the batch is the paper's over 2B views.
    `chunk` examples at a time are compared with all, so memory does not grow with B². Other arguments, metrics: see `clip`.
    """
    valid = _all_valid(a_BD, valid_B)
    place = jnp.arange(a_BD.shape[0])
    ids = place if ids_B is None else ids_B
    a, b = _embed(a_BD, valid), _embed(b_BD, valid)

    def judge(some: Mapping[str, jax.Array]) -> Any:
        same = some["place"][:, None] == place[None]
        negative = ~same & some["valid"][:, None] & valid[None] & (some["ids"][:, None] != ids[None])
        # Join along the columns: rows are sharded and stay where they are. A view is never its own negative.
        allowed = jnp.concatenate([same | negative, negative], axis=1)
        found = []
        for mine, own, other in (("a", a, b), ("b", b, a)):
            cross = _products(some[mine], other) / as_scalar(temperature)
            within = _products(some[mine], own) / as_scalar(temperature)
            positive = jnp.where(same, cross, 0.0).sum(axis=1)
            found += _choose(jnp.concatenate([cross, within], axis=1), positive, allowed, axis=1)
        return found

    rows = {"a": a, "b": b, "place": place, "ids": ids, "valid": valid}
    a_nats, a_hit, b_nats, b_hit = rows_in_chunks(judge, rows, chunk)
    return _report(0.5 * (a_nats + b_nats), a_hit, b_hit, valid)


def info_nce(
    queries_BD: jax.Array,
    keys_BD: jax.Array,
    temperature: Scalar = 0.2,
    *,
    queue_ND: jax.Array | None = None,
    valid_N: jax.Array | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, Metrics]:
    """Compute InfoNCE of MoCo: find each query's own key (He 2020, eq. 1; van den Oord 2018, eq. 4).

    Args:
        queries_BD: at any length: they are normalised here.
        keys_BD: likewise; no gradient goes to them. Row i is the key of query i.
        temperature: what cosines are divided by.
        queue_ND: the negatives, normalised (MoCo v1 and v2). None: the keys of all other queries (v3).
        valid_N: False marks rows of the queue that nothing was written to yet.
        chunk: queries compared with all keys at a time.

    Returns:
        loss `[B]` float32 in nats, and sums `objective`, `examples`, `correct` (a tie counts as wrong).
    """
    queries, keys = unit(queries_BD), jax.lax.stop_gradient(unit(keys_BD))
    place = jnp.arange(queries.shape[0])

    def judge(some: Mapping[str, jax.Array]) -> Any:
        if queue_ND is None:
            logits = _products(some["query"], keys) / as_scalar(temperature)
            own = some["place"][:, None] == place[None]
            positive = jnp.where(own, logits, 0.0).sum(axis=1)
            return _choose(logits, positive, jnp.ones(logits.shape, bool), axis=1)
        positive = (some["query"] * some["key"]).sum(axis=1) / as_scalar(temperature)
        negative = _products(some["query"], jax.lax.stop_gradient(queue_ND)) / as_scalar(temperature)
        written = jnp.ones(negative.shape, bool) if valid_N is None else jnp.broadcast_to(valid_N[None], negative.shape)
        allowed = jnp.concatenate([jnp.ones((negative.shape[0], 1), bool), written], axis=1)
        return _choose(jnp.concatenate([positive[:, None], negative], axis=1), positive, allowed, axis=1)

    nats, hit = rows_in_chunks(judge, {"query": queries, "key": keys, "place": place}, chunk)
    count = jnp.float32(nats.shape[0])
    return nats, {"objective": nats.sum(), "examples": count, "correct": hit.astype(jnp.float32).sum()}


def whole_batch(
    objective: Callable[..., tuple[jax.Array, Metrics]],
    a_BD: jax.Array,
    b_BD: jax.Array,
    *shared: Scalar,
    ids_B: jax.Array | None = None,
    valid_B: jax.Array | None = None,
) -> WholeBatch:
    """Make a term of a loss: the mean of an objective above, with its `accuracy` in both directions.

    When gradients accumulate, the negatives are still the whole batch's. `shared`: its scale, temperature or bias.
    """
    rows = {"a_BD": a_BD, "b_BD": b_BD, "ids_B": ids_B, "valid_B": valid_B}
    return WholeBatch(_judge(objective), rows=rows, shared=tuple(as_scalar(value) for value in shared))


@cache  # equal objectives have one judge, as the structure of a traced loss must not differ
def _judge(objective: Callable[..., tuple[jax.Array, Metrics]]) -> Callable[..., tuple[jax.Array, Metrics]]:
    def judge(_: Any, rows: Mapping[str, Any], shared: tuple[jax.Array, ...]) -> tuple[jax.Array, Metrics]:
        a, b, ids, valid = (rows[name] for name in ("a_BD", "b_BD", "ids_B", "valid_B"))
        losses, sums = objective(a, b, *shared, ids_B=ids, valid_B=valid)
        right = 0.5 * (sums["correct_a_to_b"] + sums["correct_b_to_a"])
        return losses.mean(), {"accuracy": ratio(right, sums["examples"])}

    return judge
