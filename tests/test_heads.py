"""Heads: pooling around padding, starting points, tied tables, and what the product codebook looks up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import named, quick
from scipy.special import erf, softmax

from unimodal.backbone import BackboneConfig
from unimodal.heads import (
    AttentionPool,
    Classifier,
    Embed,
    LanguageModel,
    MaskedLanguageModel,
    Projection,
    Quantiser,
    pool,
)
from unimodal.interop.stages import Context, Pool
from unimodal.layers import Embedding

rng = np.random.default_rng(0)
SEGMENT = np.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], np.int32)


def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape, dtype=np.float32))


def make(kind, *sizes, **options):
    return quick(lambda: kind(*sizes, **options, rngs=nnx.Rngs(0)))()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_mean_over_thousands_of_tokens_in_half_precision(dtype):
    length = 3001  # which bfloat16 does not have, nor float16 the sum
    hidden = jnp.full((1, length + 9, 2), 40.0, dtype)
    segment = jnp.asarray(np.arange(length + 9)[None] < length, jnp.int32)
    for given in (None, segment):
        mean = pool(hidden, "mean", given)
        assert mean.dtype == dtype
        np.testing.assert_allclose(mean.astype(jnp.float32), 40.0, rtol=1e-3)
    context = Context({}, None, jnp.zeros((1, length + 9), jnp.int32), segment, {})
    np.testing.assert_allclose(Pool(0, None)(hidden, context).astype(jnp.float32), 40.0, rtol=1e-3)


def test_pool():
    hidden, segment = normal(4, 4, 3), jnp.asarray(SEGMENT)
    x = np.asarray(hidden)
    for given in (None, segment):
        np.testing.assert_array_equal(pool(hidden, "first", given), x[:, 0])
    np.testing.assert_allclose(pool(hidden, "mean"), x.mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(pool(hidden, "last"), x[:, -1])
    means = [x[0].mean(axis=0), x[1, :2].mean(axis=0), x[2, 2:].mean(axis=0), np.zeros(3)]
    np.testing.assert_allclose(pool(hidden, "mean", segment), means, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(pool(hidden, "last", segment)[:3], [x[0, 3], x[1, 1], x[2, 3]])
    with pytest.raises(ValueError, match="^pool 'max' is not one of first, first_two, mean, last, final$"):
        pool(hidden, "max")


def test_pooling_by_attention_has_the_backbones_norms_scale_and_cap():
    """A slow reading by numpy."""
    config = BackboneConfig(width=8, heads=2, depth=1, qk_norm=True, attention_scale=0.9, attention_soft_cap=0.4)
    head, hidden = make(AttentionPool, config), normal(4, 4, 8)
    for norm in (head.attention.query_norm, head.attention.key_norm):
        norm.scale.set_value(2 + normal(4))
        norm.bias.set_value(normal(4))
    found = quick(lambda head: head(hidden, jnp.asarray(SEGMENT)))(head)
    w, probe, x = named(nnx.state(head)), np.asarray(head.probe.get_value()), np.asarray(hidden)

    def linear(x, name, size=1):
        return np.tensordot(x, w[f"{name}.kernel"], size) + w[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * w[f"{name}.scale"] + w[f"{name}.bias"]

    q = norm(linear(probe, "attention.query"), "attention.query_norm")
    k, v = norm(linear(x, "attention.key"), "attention.key_norm"), linear(x, "attention.value")
    logits = 0.4 * np.tanh(0.9 * np.einsum("hk,bthk->bht", q, k) / 0.4)
    weights = softmax(np.where((SEGMENT != 0)[:, None], logits, -1e30), axis=-1)
    taken = linear(np.einsum("bht,bthk->bhk", weights, v), "attention.output", 2)
    hidden = linear(norm(taken, "norm"), "mlp.up")
    expected = taken + linear(0.5 * hidden * (1 + erf(hidden / np.sqrt(2))), "mlp.down")
    np.testing.assert_allclose(found[:3], expected[:3], rtol=1e-4, atol=1e-5)  # the last row is all padding


@pytest.mark.parametrize("how", ["mean", "last"])
def test_pooling_takes_no_gradient_to_padding(how):
    gradient = jax.grad(lambda h: jnp.square(pool(h, how, jnp.asarray(SEGMENT))).sum())(normal(4, 4, 3))
    reached = np.abs(np.asarray(gradient)).max(axis=2)[:3] > 0
    real = SEGMENT[:3] != 0
    assert not reached[~real].any() and reached.any(axis=1).all()
    if how == "mean":
        assert reached[real].all()


def test_classifier_starts_uniform_and_can_leave():
    head, hidden = make(Classifier, 5, 3, pooling="mean"), normal(4, 4, 5)
    logits = head(hidden, jnp.asarray(SEGMENT))
    assert logits.shape == (4, 3) and not np.asarray(logits).any()
    gradient = jax.grad(lambda head: head(hidden)[:, 0].sum())(head)
    assert np.abs(gradient.linear.kernel.get_value()[:, 0]).min() > 0


def test_projection_has_unit_length():
    head, hidden = make(Projection, 5, 3, Embed("last")), normal(4, 4, 5)
    out = head(hidden.astype(jnp.bfloat16))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, rtol=1e-5)
    raw = np.asarray(hidden)[:, -1] @ named(head)["linear.kernel"]
    np.testing.assert_allclose(head(hidden), raw / np.linalg.norm(raw, axis=-1, keepdims=True), rtol=1e-5)
    nothing = jax.value_and_grad(lambda h: head(h).sum())(jnp.zeros((1, 2, 5)))
    assert all(np.isfinite(a).all() for a in nothing)
    assert set(named(head)) == {"linear.kernel"}


def test_language_model_tied_or_not():
    table, hidden = make(Embedding, 7, 5), normal(2, 4, 5)
    tied, own = make(LanguageModel, 5, 7, bias=True), make(LanguageModel, 5, 7, tied=False)
    assert set(named(tied)) == {"bias"} and set(named(own)) == {"linear.kernel"}
    tied.bias.set_value(normal(7))
    want = np.asarray(hidden) @ named(table)["table"].T + np.asarray(tied.bias.get_value())
    np.testing.assert_allclose(tied(hidden, table), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        own(hidden, table), np.asarray(hidden) @ named(own)["linear.kernel"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(tied(hidden[0], table), want[0], rtol=1e-5, atol=1e-6)  # [...,D] of any rank
    assert tied(hidden.astype(jnp.bfloat16), table).dtype == jnp.bfloat16


def test_masked_language_model_is_what_devlin_says():
    table, hidden = make(Embedding, 7, 5), normal(2, 4, 5)
    head = make(MaskedLanguageModel, 5, 7, norm_epsilon=1e-3)
    for parameter in (head.transform.bias, head.norm.scale, head.norm.bias, head.decoder.bias):
        parameter.set_value(normal(*parameter.get_value().shape))
    w = named(head)
    y = np.asarray(hidden) @ w["transform.kernel"] + w["transform.bias"]
    y = 0.5 * y * (1 + erf(y / np.sqrt(2)))
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-3) * w["norm.scale"] + w["norm.bias"]
    want = y @ named(table)["table"].T + w["decoder.bias"]
    np.testing.assert_allclose(quick(lambda h: head(h, table))(hidden), want, rtol=1e-4, atol=1e-5)


def test_quantiser_scores_and_looks_up():
    head, features = make(Quantiser, 5, 2, 4, 3), normal(2, 6, 5)
    scores = np.asarray(head.scores(features))
    assert scores.shape == (2, 6, 2, 4)
    codes = rng.integers(0, 4, (2, 6, 2))
    found = np.asarray(head.look_up(jax.nn.one_hot(jnp.asarray(codes), 4)))
    assert found.shape == (2, 6, 6)
    table = named(head)["table"]
    for b, t in np.ndindex(2, 6):
        np.testing.assert_allclose(found[b, t], np.concatenate([table[g, codes[b, t, g]] for g in range(2)]), rtol=1e-6)
