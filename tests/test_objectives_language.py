"""Causal and masked language modelling against Hugging Face and torch, and the chunked form against the dense one."""

import re
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from unimodal.objectives import (
    causal_lm,
    chunked_causal_lm,
    chunked_cross_entropy,
    cross_entropy,
    masked_lm,
    next_token_targets,
    ratio,
)
from unimodal.objectives.softmax import log_sum_exp

REFERENCE = dict(np.load(Path(__file__).parent / "reference/objectives/language.npz", allow_pickle=False))
LOGITS, IDS, SEGMENT, CHOSEN = (jnp.asarray(REFERENCE[name]) for name in ("logits", "ids", "segment", "chosen"))
CAUSAL = jax.jit(causal_lm)


@jax.jit
def row_losses_and_grad(logits, ids, segment):
    loss, pull = jax.vjp(lambda x: causal_lm(x, ids, segment)[0], logits)
    return loss, pull(jnp.ones(len(loss)))[0]


def token_mean(objective, *args, **options):
    def loss(logits):
        _, sums = objective(logits, *args, **options)
        return ratio(sums["objective"], sums["tokens"])

    return loss


WHOLE_BATCH = {
    "causal": token_mean(causal_lm, IDS),
    "packed": token_mean(causal_lm, IDS, SEGMENT),
    "smooth_z": token_mean(causal_lm, IDS, SEGMENT, label_smoothing=0.1, z_loss=1e-2),
    "masked": token_mean(masked_lm, jnp.where(CHOSEN > 0, IDS, -100), CHOSEN),
}


@pytest.mark.parametrize("name", WHOLE_BATCH)
def test_token_mean_equals_the_reference(name):
    loss, grad = jax.jit(jax.value_and_grad(WHOLE_BATCH[name]))(LOGITS)
    np.testing.assert_allclose(loss, REFERENCE[f"{name}_loss"], rtol=1e-5)
    np.testing.assert_allclose(grad, REFERENCE[f"{name}_grad_logits"], atol=1e-6, rtol=1e-5)


def test_loss_per_example_equals_the_reference():
    loss, grad = row_losses_and_grad(LOGITS, IDS, SEGMENT)
    np.testing.assert_allclose(loss, REFERENCE["packed_rows_loss"], rtol=1e-5)
    np.testing.assert_allclose(grad, REFERENCE["packed_rows_grad_logits"], atol=1e-6, rtol=1e-5)


def test_sums_are_counts_of_what_was_predicted():
    _, sums = CAUSAL(LOGITS, IDS, SEGMENT)
    counted = [(b, t) for b in range(3) for t in range(11) if SEGMENT[b, t] == SEGMENT[b, t + 1] != 0]
    hits = sum(int(np.argmax(LOGITS[b, t]) == IDS[b, t + 1]) for b, t in counted)
    assert sums["tokens"] == len(counted) == 11 + 9 + 5
    assert sums["correct"] == hits
    np.testing.assert_allclose(ratio(sums["nats"], sums["tokens"]), REFERENCE["packed_loss"], rtol=1e-5)


def test_a_segment_does_not_feel_its_neighbours():
    """The loss of segment 2 of row 1 has a gradient at its own predicting positions and exactly nowhere else."""
    only_second = np.where(np.asarray(SEGMENT) == 2, 2, 0).astype(np.int32)
    touched = np.abs(np.asarray(row_losses_and_grad(LOGITS, IDS, only_second)[1])).sum(axis=2) > 0
    assert touched[1].tolist() == [False] * 5 + [True] * 3 + [False] * 4
    # Nor does a row's loss depend on the tokens behind the padding.
    other_ids = np.where(np.asarray(SEGMENT) == 0, 0, IDS)
    np.testing.assert_array_equal(CAUSAL(LOGITS, IDS, SEGMENT)[0], CAUSAL(LOGITS, other_ids, SEGMENT)[0])


def test_targets_end_with_the_segment():
    targets, weights = next_token_targets(jnp.array([[5, 6, 7, 8, 0]]), jnp.array([[1, 1, 2, 2, 0]]))
    assert weights.tolist() == [[1, 0, 1, 0, 0]]
    assert targets[0, 0] == 6 and targets[0, 2] == 8


def test_masked_lm_counts_only_the_chosen():
    grad = jax.jit(jax.grad(lambda logits: masked_lm(logits, IDS, CHOSEN)[0].sum()))(LOGITS)
    assert ((np.abs(np.asarray(grad)).sum(axis=2) > 0) == (np.asarray(CHOSEN) > 0)).all()


def test_equal_outputs_are_not_called_correct():
    _, sums = CAUSAL(jnp.zeros((2, 6, 9)), jnp.zeros((2, 6), jnp.int32))
    assert sums["correct"] == 0 and sums["tokens"] == 10


HUGE = jnp.array([[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0]])


def test_huge_logits_stay_finite():
    loss, grad = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, jnp.array([0, 1]))[0].sum()))(HUGE)
    assert loss == 0 and np.isfinite(grad).all()


def chunk_case():
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in ((3, 12, 6), (6, 17), (17,)))


def dense(hidden, table, bias):
    logits = jnp.einsum("btd,dv->btv", hidden, table, preferred_element_type=jnp.float32)
    logits = logits + bias.astype(jnp.float32)[None, None, :]
    return causal_lm(logits, IDS, SEGMENT, label_smoothing=0.1, z_loss=1e-2)


def in_chunks(chunk):
    def objective(hidden, table, bias):
        options = {"label_smoothing": 0.1, "z_loss": 1e-2}
        return chunked_causal_lm(hidden, table, IDS, SEGMENT, chunk=chunk, bias_V=bias, **options)

    return objective


def with_grads(objective, case):
    def total(*case):
        loss, sums = objective(*case)
        return (loss * jnp.array([1.0, -2.0, 0.5])).sum(), (loss, sums)

    (_, (loss, sums)), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(*case)
    return loss, sums, grads


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_chunked_equals_dense(chunk):
    case = chunk_case()
    loss, sums, grads = with_grads(in_chunks(chunk), case)
    loss_dense, sums_dense, grads_dense = with_grads(dense, case)
    np.testing.assert_allclose(loss, loss_dense, rtol=1e-6)
    assert sums["correct"] == sums_dense["correct"] and sums["tokens"] == sums_dense["tokens"]
    for ours, theirs in zip(grads, grads_dense, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_copies_of_the_table_are_one_table():
    """For 3 parts of the batch and 2 of T; 5 positions at a time become 6, so that 2 divide them."""
    hidden, table, bias = chunk_case()

    def copied(hidden, table, bias):
        return in_chunks(5)(hidden, jnp.broadcast_to(table[None, None], (3, 2, *table.shape)), bias)

    loss, _, grads = with_grads(copied, (hidden, table, bias))
    loss_dense, _, grads_dense = with_grads(dense, (hidden, table, bias))
    np.testing.assert_allclose(loss, loss_dense, rtol=1e-6)
    for ours, theirs in zip(grads, grads_dense, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("row", [[0.1, 2.0, -3.0], [1e6, 1e6, 0.0], [-1e30] * 3, [-np.inf, 0.0, 1.0]])
def test_log_sum_exp_at_the_extremes(row):
    """Value and gradient are scipy's log-sum-exp and softmax."""
    value, gradient = jax.value_and_grad(log_sum_exp)(jnp.asarray(row, jnp.float32))
    np.testing.assert_allclose(value, logsumexp(row), rtol=1e-6)
    np.testing.assert_allclose(gradient, softmax(row), rtol=1e-6, atol=1e-7)


def test_chunked_in_bfloat16_sums_the_table_gradient_in_float32():
    """1,000 chunks of one token: a bfloat16 running sum would stop growing at 256 times its terms."""
    hidden = jnp.ones((1, 1000, 2), jnp.bfloat16)
    table = jnp.zeros((2, 3), jnp.bfloat16)
    targets = jnp.zeros((1, 1000), jnp.int32)
    grad = jax.jit(jax.grad(lambda t: chunked_cross_entropy(hidden, t, targets, chunk=1)[1]["objective"]))(table)
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(grad[:, 0].astype(jnp.float32), -2000 / 3, rtol=1e-2)


def all_jaxprs(jaxpr):
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from all_jaxprs(inner)


def float32_sizes(objective, arrays) -> tuple[int, int]:
    """Elements of the largest float32 array in the jaxpr, and in the compiled program, of a value and its gradient."""
    step = jax.value_and_grad(lambda *xs: objective(*xs)[0].sum(), argnums=(0, 1))
    traced = jax.jit(step).trace(*arrays)
    variables = [v.aval for j in all_jaxprs(traced.jaxpr.jaxpr) for e in j.eqns for v in e.outvars]
    in_jaxpr = max(prod(a.shape) for a in variables if getattr(a, "dtype", None) == jnp.float32)
    text = traced.lower().compile().as_text() or ""
    in_program = max(prod(map(int, dims.split(","))) for dims in re.findall(r"\bf32\[([\d,]+)\]", text))
    return in_jaxpr, in_program


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_chunked_never_holds_all_logits(dtype):
    B, T, D, V, chunk = 2, 64, 8, 256, 16
    arrays = jnp.ones((B, T, D), dtype), jnp.ones((D, V), dtype)
    targets = jnp.zeros((B, T), jnp.int32)

    def whole(hidden, table):
        return cross_entropy(jnp.einsum("btd,dv->btv", hidden, table), targets)

    def chunked(hidden, table):
        return chunked_cross_entropy(hidden, table, targets, chunk=chunk)

    assert max(float32_sizes(chunked, arrays)) <= B * chunk * V
    assert min(float32_sizes(whole, arrays)) >= B * T * V  # the measuring sees the array where it is


def test_chunked_needs_less_memory_than_dense():
    B, T, D, V = 2, 1024, 8, 2048
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((B, T, D), (D, V))]
    targets = jnp.zeros((B, T), jnp.int32)

    def temporary(objective):
        step = jax.grad(lambda *xs: objective(*xs)[0].sum(), argnums=(0, 1))
        memory: Any = jax.jit(step).lower(*shapes).compile().memory_analysis()
        return memory.temp_size_in_bytes

    whole = temporary(lambda hidden, table: cross_entropy(jnp.einsum("btd,dv->btv", hidden, table), targets))
    chunked = temporary(lambda hidden, table: chunked_cross_entropy(hidden, table, targets, chunk=64))
    assert whole >= 4 * B * T * V and chunked < whole / 4


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        chunked_cross_entropy(jnp.ones((1, 2, 3)), jnp.ones((3, 4)), jnp.zeros((1, 2), jnp.int32), chunk=0)
    with pytest.raises(ValueError, match="weights have shape"):
        masked_lm(LOGITS, IDS, CHOSEN[:, :5])
