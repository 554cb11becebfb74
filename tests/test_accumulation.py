"""A batch in micro-batches has the loss, metrics and gradients of the whole batch, whatever its loss divides by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from quick import quick

from unimodal.layers import Linear
from unimodal.objectives import Mean, Sum, WholeBatch, as_scalars, clip, diversity, diversity_term, siglip, whole_batch
from unimodal.objectives.terms import joined, joined_metrics, needs, part_of
from unimodal.sharding import from_local_rows, make_mesh
from unimodal.training.step import Program

ROWS, WIDTH = 8, 5


class Toy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.a = Linear((3,), (WIDTH,), ("embed", "mlp"), rngs=rngs)
        self.b = Linear((3,), (WIDTH,), ("embed", "mlp"), rngs=rngs)
        self.scale = nnx.Param(jnp.full((), 3.0, jnp.float32), axes=())


def batch_of(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows that count very differently: row i has 0, 1 or 16 tokens."""
    rng = np.random.default_rng(seed)
    counts = np.array([16, 1, 0, 1, 1, 1, 1, 1], np.float32)
    return {"x": rng.normal(size=(ROWS, 3)).astype(np.float32), "count": counts, "id": np.arange(ROWS) % 6}


def by_tokens(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
    each = jnp.square(model.a(batch["x"])).sum(axis=1) * batch["count"]
    return Mean(each.sum(), batch["count"].sum()), {
        "share": Mean((batch["count"] * batch["x"][:, 0]).sum(), batch["count"].sum()),
        "empty": Sum((batch["count"] == 0).astype(jnp.float32).sum()),
    }


def pairs(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
    a, b, x = model.a(batch["x"]), model.b(batch["x"]), model.scale.get_value()
    return whole_batch(clip, a, b, x, ids_B=batch["id"]), {"scale": x}


def sigmoid_pairs(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
    valid = batch["count"] > 0
    return whole_batch(
        siglip, model.a(batch["x"]), model.b(batch["x"]), model.scale.get_value(), -1.0, valid_B=valid
    ), {}


def codes(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
    shares = jax.nn.softmax(model.a(batch["x"]))[:, None, None]
    return diversity_term(shares, batch["count"][:, None] > 0, 0.3), {}


def several(model: Any, batch: Any, **options: Any) -> Any:
    mean, metrics = by_tokens(model, batch, **options)
    return (mean, jnp.square(model.b(batch["x"])).mean(), codes(model, batch, **options)[0]), metrics


LOSSES: dict[str, Callable[..., Any]] = dict(
    by_tokens=by_tokens, pairs=pairs, sigmoid_pairs=sigmoid_pairs, codes=codes, several=several
)


def gradients(
    loss: Callable[..., Any], accumulate: int, mesh: Mapping[str, int]
) -> tuple[list[np.ndarray], dict[str, float]]:
    """By one step of plain descent at rate 1, which moves the parameters by their gradient."""
    sizes: Any = mesh
    place = make_mesh(**sizes)
    program = Program(lambda key: Toy(nnx.Rngs(key)), optax.sgd(1.0), place, seed=0, accumulate=accumulate)
    state = program.init()
    before = jax.device_get(state.parameters)
    with jax.set_mesh(place):
        local = from_local_rows(batch_of(), place, accumulate)
        state, metrics = program.step({"toy": (loss, 1.0)})(state, {"toy": local})
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before, jax.device_get(state.parameters))
    return jax.tree.leaves(moved), {name: float(value) for name, value in metrics["toy"].items()}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("accumulate", "mesh"), [(2, dict(data=1)), (4, dict(data=2)), (2, dict(data=2, fsdp=2))])
def test_gradients_and_metrics_are_the_whole_batch_s(name: str, accumulate: int, mesh: dict[str, int]) -> None:
    whole, metrics = gradients(LOSSES[name], 1, dict(data=1))
    parts, others = gradients(LOSSES[name], accumulate, mesh)
    size = np.sqrt(sum(np.square(g).sum() for g in whole))
    assert size > 0.01
    for mine, theirs in zip(whole, parts, strict=True):
        np.testing.assert_allclose(theirs, mine, atol=1e-5 * size)
    assert metrics.keys() == others.keys()
    for key, value in metrics.items():
        np.testing.assert_allclose(others[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


def test_the_whole_batch_s_mean_by_hand() -> None:
    batch = batch_of()
    _, metrics = gradients(by_tokens, 4, dict(data=1))
    np.testing.assert_allclose(metrics["share"], (batch["count"] @ batch["x"][:, 0]) / 22, rtol=1e-5)
    assert metrics["empty"] == 1


def test_half_precision_is_summed_in_float32() -> None:
    parts = 1024

    place = make_mesh(data=1)

    class One(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.zeros((), jnp.bfloat16), axes=())

    def of_one(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
        return model.w.get_value().astype(jnp.float32) * batch["x"].mean(), {}

    program = Program(lambda key: One(), optax.sgd(1.0), place, seed=0, accumulate=parts)
    batch: Any = {"x": np.ones((parts, 1), np.float32)}
    with jax.set_mesh(place):
        state, _ = program.step({"toy": (of_one, 1.0)})(program.init(), {"toy": batch})
    (moved,) = jax.tree.leaves(jax.device_get(state.parameters))
    assert float(moved) == -1.0  # in bfloat16 a sum of 1/1024s stops growing at ¼


def test_counting_first_costs_no_forward_pass() -> None:
    """The products of matrices in the compiled step, which is where its time goes."""
    place = make_mesh(data=1)

    def products(loss: Callable[..., Any]) -> int:
        program = Program(lambda key: Toy(nnx.Rngs(key)), optax.sgd(1.0), place, seed=0, accumulate=2)
        shapes = {name: jnp.asarray(value.reshape(2, 4, *value.shape[1:])) for name, value in batch_of().items()}
        with jax.set_mesh(place):
            text = (
                program.step({"toy": (loss, 1.0)}).lower(program.abstract_state(), {"toy": shapes}).compile().as_text()
            )
        return text.count(" dot(")

    def scalar(model: Any, batch: Any, **options: Any) -> Any:
        return as_scalars(*by_tokens(model, batch, **options))[0], {}

    assert 0 < products(by_tokens) == products(scalar)


# ---- the tasks themselves ------------------------------------------------------------------------------------------


# What is taken from the first half of the rows, so that the halves count differently: field, from where on.
LESS = {
    "gpt": ("ids", 3),
    "bert": ("weights", 4),
    "virtex": ("ids", 3),
    "dalle": ("ids", 3),
    "wav2vec2": ("masked", 6),
    "ctc": ("text", 2),
}


def uneven(kind: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    half = len(next(iter(batch.values()))) // 2
    batch = {name: np.array(value) for name, value in batch.items()}
    if kind in LESS:
        field, start = LESS[kind]
        assert batch[field][:half, start:].any(), f"nothing to take from {field}"
        batch[field][:half, start:] = 0
    if kind == "ctc":
        batch["length"][0] = 0  # left out of the loss
    return batch


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_task_s_loss_is_the_whole_batch_s(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A part draws on a key of its own: here all draw the same, so that nothing but the counts can differ.
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    monkeypatch.setattr(jax.random, "randint", lambda key, shape, low, high, dtype: jnp.zeros(shape, dtype))
    experiment = tiny.build(tiny.plain(kind, backbones__shared__depth=1))
    (task,), key, step = experiment.tasks, jax.random.key(0), jnp.int32(0)
    given = dict(next(experiment.train_batches(task)))
    given.pop("id")  # strings, which stay on the host
    batch = uneven(kind, given)
    halves = jax.tree.map(lambda x: np.stack(np.split(x, 2)), batch)

    def both(model: Any, batch: Any, halves: Any) -> Any:
        whole = as_scalars(*task.loss(model, batch, key=key, step=step))
        parted = [{name: value[i] for name, value in halves.items()} for i in range(2)]
        found = [task.loss(model, half, key=key, step=step) for half in parted]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *(needs(loss) for loss, _ in found))
        known = joined(stacked)
        parts = sum(part_of(loss, known, jnp.int32(i), 2)[0] for i, (loss, _) in enumerate(found))
        return whole, (parts, joined_metrics(jax.tree.map(lambda *x: jnp.stack(x), *(m for _, m in found)), known))

    model = quick(experiment.program.make_model)(key)
    (loss, metrics), (other, others) = quick(both)(model, batch, halves)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    assert metrics.keys() == others.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_diversity_of_parts_is_that_of_the_batch() -> None:
    rng = np.random.default_rng(0)
    shares: Any = rng.dirichlet(np.ones(4), size=(4, 6, 2)).astype(np.float32)
    mask: Any = rng.random((4, 6)) < np.array([[0.9], [0.1], [0.5], [0.2]])
    terms = [diversity_term(shares[i : i + 2], mask[i : i + 2], 2.0) for i in (0, 2)]
    (known,) = joined(jax.tree.map(lambda *x: jnp.stack(x), *(needs(term) for term in terms)))
    mean = shares[mask].mean(axis=0)  # by hand: eq. 4 of the paper on the average over all counted frames
    perplexity = np.exp(-(mean * np.log(mean)).sum(axis=1))
    expected = (8 - perplexity.sum()) / 8
    np.testing.assert_allclose(known.loss, 2.0 * expected, rtol=1e-5)
    np.testing.assert_allclose(known.metrics["diversity_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(known.metrics["code_perplexity"], perplexity.mean(), rtol=1e-5)
    np.testing.assert_allclose(diversity(shares, mask)[0], expected, rtol=1e-5)
    assert isinstance(terms[0], WholeBatch)
