"""Terms of losses and metrics. With them a batch in parts (gradient accumulation) gives exactly what the whole batch would.

The mean over a batch is not the mean of its parts' means when the parts count differently. So a term says what it divides
by. A term that compares examples with each other says what it needs of all of them:

| term | over parts of a batch |
|---|---|
| a scalar | the plain mean: all rows weigh the same |
| `Mean(total, count)` | totals and counts are added up, then divided |
| `Sum(total)` (metrics only) | added up |
| `Summary(finish, sums)` (metrics only) | added up, then `finish`ed, as a perplexity is |
| `WholeBatch(judge, …)` | judged once, on what all parts give |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from unimodal.objectives.reduction import ratio


class Mean(NamedTuple):
    """A mean as its total and its count. 0 where nothing counts."""

    total: jax.Array  # sum of what is averaged
    count: jax.Array  # depends on the batch only, not on parameters

    def value(self) -> jax.Array:
        return ratio(self.total, self.count)


class Sum(NamedTuple):
    """A metric that adds up, such as a number of examples."""

    total: jax.Array  # so far


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Summary:
    """A metric that is a function of sums over the batch: finish(sums) → a scalar."""

    finish: Callable[[Any], jax.Array] = field(metadata=dict(static=True))  # pure, and closes over no traced array
    sums: Any  # arrays that are added up over parts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WholeBatch:
    """A loss of the batch as a whole, such as one with in-batch negatives: judge(sums, rows, shared) → loss, metrics.

    With accumulation every part of the batch runs forward twice: once to collect what `judge` needs, and once for the
    gradients (Gao et al. 2021, cached gradients). Only what `sums`, `rows` and `shared` need is computed twice.
    """

    # A pure function that closes over no traced array. Its metrics are scalars.
    judge: Callable[[Any, Any, Any], tuple[jax.Array, Mapping[str, jax.Array]]] = field(metadata=dict(static=True))
    sums: Any = ()  # arrays that are added up over parts
    rows: Any = ()  # arrays [B, ...] that are joined
    shared: Any = ()  # what does not depend on the examples, such as a temperature


Term: TypeAlias = jax.Array | Mean | WholeBatch
Loss: TypeAlias = Term | tuple[Term, ...]  # a tuple is the sum of its terms
TaskMetrics: TypeAlias = Mapping[str, jax.Array | Mean | Sum | Summary]


def terms(loss: Loss) -> tuple[Term, ...]:
    """List the terms of a loss."""
    return loss if isinstance(loss, tuple) and not isinstance(loss, Mean) else (loss,)


def as_scalars(loss: Loss, metrics: TaskMetrics) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Reduce the loss and the metrics of a whole batch to scalars."""
    values, found = [], {name: _scalar(metric) for name, metric in metrics.items()}
    for term in terms(loss):
        if isinstance(term, WholeBatch):
            value, more = term.judge(term.sums, term.rows, term.shared)
            found |= more
        else:
            value = _scalar(term)
        values.append(value)
    return sum(values[1:], values[0]), found


# ---- a batch in parts ----------------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """A `WholeBatch` of all parts."""

    loss: jax.Array  # of the whole batch
    metrics: Mapping[str, jax.Array]  # of the whole batch
    sums: Any  # derivatives of the loss by the rows of each part
    rows: Any  # [parts, rows of a part, ...]
    shared: Any  # derivatives of the loss by what all parts share


def needs(loss: Loss) -> list[Any]:
    """Collect what all parts must know before any has a gradient: counts, and the inputs of a `WholeBatch`."""
    wanted = {Mean: lambda term: term.count, WholeBatch: lambda term: term}
    return [wanted.get(type(term), lambda _: None)(term) for term in terms(loss)]


def joined(stacked: list[Any]) -> list[Any]:
    """Join the `needs` of all parts, stacked along a first axis, for `part_of`."""
    return [_judged(each) if isinstance(each, WholeBatch) else _added(each) for each in stacked]


def part_of(loss: Loss, known: list[Any], part: jax.Array, parts: int) -> tuple[jax.Array, jax.Array]:
    """Give what one part adds to the loss of the whole batch, and a scalar with the same gradient.

    The two differ for a `WholeBatch`. Its loss belongs to no part, but by the chain rule its gradient is a sum over parts.
    """
    values, slopes = jnp.float32(0), jnp.float32(0)
    for term, whole in zip(terms(loss), known, strict=True):
        if isinstance(term, WholeBatch):
            mine = jax.tree.map(lambda g: g[part], whole.rows)
            given, derivatives = (term.sums, term.rows, term.shared), (whole.sums, mine, whole.shared)
            values, slopes = values + whole.loss / parts, slopes + _inner(derivatives, given, parts)
        else:
            value = ratio(term.total, whole) if isinstance(term, Mean) else term / parts
            values, slopes = values + value, slopes + value
    return values, slopes


def joined_metrics(stacked: TaskMetrics, known: list[Any]) -> dict[str, jax.Array]:
    """Join the metrics of all parts, stacked along a first axis, into those of the whole batch."""
    found = {}
    for name, metric in stacked.items():
        added = jax.tree.map(lambda x: x.sum(axis=0), metric)
        found[name] = metric.mean(axis=0) if isinstance(metric, jax.Array) else _scalar(added)
    for each in known:
        found |= each.metrics if isinstance(each, Judged) else {}
    return found


def _judged(stacked: WholeBatch) -> Judged:
    given = (
        _added(stacked.sums),
        jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), stacked.rows),
        jax.tree.map(lambda x: x[0], stacked.shared),
    )
    judge = jax.value_and_grad(lambda given: stacked.judge(*given), has_aux=True, allow_int=True)
    (loss, metrics), (sums, rows, shared) = judge(given)
    parted = jax.tree.map(lambda g, x: g.reshape(x.shape) if _real(x) else x, rows, stacked.rows)
    return Judged(loss, metrics, sums, parted, shared)


def _inner(derivatives: Any, given: Any, parts: int) -> jax.Array:
    """Sum derivative · array over the three kinds. What parts share is divided among them."""
    (*own, shared), (*mine, common) = derivatives, given

    def product(g: jax.Array, x: jax.Array) -> jax.Array:
        if not _real(x):
            return jnp.float32(0)
        return (jax.lax.stop_gradient(g).astype(jnp.float32) * x.astype(jnp.float32)).sum()

    def inner(these: Any, those: Any) -> jax.Array:
        return jnp.stack([jnp.float32(0), *jax.tree.leaves(jax.tree.map(product, these, those))]).sum()

    return inner(own, mine) + inner(shared, common) / parts


def _added(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sum(axis=0), tree)


def _real(x: jax.Array) -> bool:  # an integer has no derivative
    return jnp.issubdtype(x.dtype, jnp.floating)


def _scalar(value: Any) -> jax.Array:
    if isinstance(value, Mean):
        return value.value()
    if isinstance(value, Summary):
        return value.finish(value.sums)
    return value.total if isinstance(value, Sum) else value
