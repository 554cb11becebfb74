"""Attention: the visibility rule read slowly, the kernel against plain numpy, and what must not matter by gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

from unimodal import Span, visible
from unimodal.attention import _choose, attend, attention
from unimodal.visibility import Pattern

LAYOUTS = [
    (Span(7),),
    (Span(7, True),),
    (Span(3), Span(4, True)),
    (Span(4, True), Span(3)),
    (Span(2), Span(1, True), Span(3), Span(1)),
    (Span(2, True), Span(3, True), Span(2)),
]
SEGMENTS = np.asarray(
    [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 0, 0], [0, 3, 1, 3, 1, 0, 3], [0, 0, 0, 0, 0, 0, 0]], np.int32
)
ATTENTION = quick(attention, static_argnums=3, static_argnames=("implementation", "scale"))
B, T, H, G, K = 4, 7, 4, 2, 3


def sees(layout, segment, query, key):
    """The definition in `tokens.py`, word by word."""
    bounds = np.cumsum([0] + [span.length for span in layout])
    span_of = [next(i for i in range(len(layout)) if bounds[i] <= place < bounds[i + 1]) for place in (query, key)]
    if segment is not None and (segment[query] == 0 or segment[query] != segment[key]):
        return False
    if span_of[1] < span_of[0]:
        return True
    return span_of[0] == span_of[1] and (not layout[span_of[0]].causal or key <= query)


def slowly_visible(layout, segments):
    rows = [None] if segments is None else segments
    return np.asarray([[[sees(layout, row, t, s) for s in range(T)] for t in range(T)] for row in rows])


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((B, T, heads, K), dtype=np.float32)) for heads in (H, G, G)]


def slowly_attended(q, k, v, mask, scale):
    """One query at a time, in double precision. A query that sees nothing stays zero."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    result, weights = np.zeros((B, T, H, K)), np.zeros((B, H, T, T))
    for b, t, h in np.ndindex(B, T, H):
        seen = np.flatnonzero(mask[b % len(mask), t])
        if len(seen):
            group = h // (H // G)
            score = np.exp(k[b, seen, group] @ q[b, t, h] * scale)
            weights[b, h, t, seen] = score / score.sum()
            result[b, t, h] = weights[b, h, t] @ v[b, :, group]
    return result, weights


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_visible_is_the_definition(layout):
    for segments in (None, SEGMENTS):
        found = visible(layout, None if segments is None else jnp.asarray(segments))
        found = np.ones((1, T, T), bool) if found is None else np.asarray(found)
        np.testing.assert_array_equal(found, slowly_visible(layout, segments))


def test_random_layouts_are_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(30):
        cuts = np.unique(np.concatenate([[0, T], rng.integers(1, T, rng.integers(0, 4))]))
        layout = tuple(Span(int(n), bool(rng.integers(2))) for n in np.diff(cuts))
        segments = rng.integers(0, 3, (2, T)).astype(np.int32)
        np.testing.assert_array_equal(visible(layout, jnp.asarray(segments)), slowly_visible(layout, segments))


def test_no_mask_where_all_see_all():
    assert visible((Span(5),), None) is None
    assert visible((Span(5, True),), None) is not None


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=str)
def test_attention_with_grouped_heads_equals_a_slow_reading(layout):
    """Also the fully padded row (the last of SEGMENTS) and padded queries: zeros."""
    q, k, v = inputs()
    for segments in (None, SEGMENTS):
        mask = slowly_visible(layout, segments)
        given = None if segments is None else jnp.asarray(segments)
        result, weights = slowly_attended(q, k, v, mask, K**-0.5)
        np.testing.assert_allclose(ATTENTION(q, k, v, layout, given), result, rtol=1e-5, atol=1e-6)
        again, captured = attend(q, k, v, visible(layout, given))
        np.testing.assert_allclose(again, result, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(captured, weights, rtol=1e-5, atol=1e-6)


def test_scale():
    q, k, v = inputs()
    result, _ = slowly_attended(q, k, v, slowly_visible((Span(T),), None), 0.7)
    np.testing.assert_allclose(ATTENTION(q, k, v, (Span(T),), scale=0.7), result, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [LAYOUTS[1], LAYOUTS[4]], ids=str)
def test_what_must_not_matter_has_exactly_zero_gradient(layout):
    """Future tokens, later spans, other segments, padding, other rows of the batch; and all that may matter does."""
    q, k, v = inputs()
    segment = jnp.asarray(SEGMENTS)
    jacobians = quick(jax.jacrev(lambda *a: attention(*a, layout, segment).sum(axis=(2, 3)), argnums=(0, 1, 2)))(
        q, k, v
    )
    of_q, of_k, of_v = (np.abs(np.asarray(j)).max(axis=(4, 5)) for j in jacobians)  # [B,T,B,S]
    mask = slowly_visible(layout, SEGMENTS)
    same_row = np.eye(B, dtype=bool)[:, None, :, None]
    may = same_row & mask[:, :, None, :]
    choosing = mask.sum(axis=2)[:, :, None, None] > 1  # with one key to see, there is nothing to weigh
    np.testing.assert_array_equal(of_v > 0, may)
    np.testing.assert_array_equal(of_k > 0, may & choosing)
    itself = same_row & np.eye(T, dtype=bool)[None, :, None, :]
    np.testing.assert_array_equal(of_q > 0, itself & choosing)


def test_extreme_logits_and_padding_make_no_nan():
    q, k, v = inputs()
    segment = jnp.asarray(SEGMENTS)

    def loss(q, k, v):
        return jnp.square(attention(q * 1e4, k * 1e4, v, (Span(T, True),), segment)).sum()

    value, grads = quick(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)
    assert not np.asarray(grads[2])[3].any()


def test_bfloat16_keeps_its_dtype_and_softens_in_float32():
    q, k, v = inputs()
    small = [a.astype(jnp.bfloat16) for a in (q, k, v)]
    result = ATTENTION(*small, (Span(T, True),))
    assert result.dtype == jnp.bfloat16
    exact = ATTENTION(*(a.astype(jnp.float32) for a in small), (Span(T, True),))
    np.testing.assert_allclose(result.astype(jnp.float32), exact, atol=0.03)
    assert attend(*small, None)[1].dtype == jnp.float32


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[1], LAYOUTS[4]], ids=str)
def test_what_the_fused_kernel_is_asked_for_means_the_same(layout, monkeypatch):
    """There is no GPU here: XLA's own kernel answers the call that cuDNN would get."""
    asked, fused = [], jax.nn.dot_product_attention

    def answer(*arrays, implementation, **options):
        asked.append((implementation, options["is_causal"], options.get("mask") is not None))
        return fused(*arrays, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    q, k, v = inputs()
    causal = layout == LAYOUTS[1]
    for segments in (None, SEGMENTS):
        given = None if segments is None else jnp.asarray(segments)
        real = np.ones((B, T), bool) if segments is None else segments != 0
        got = np.asarray(attention(q, k, v, layout, given, implementation="cudnn"))
        want = np.asarray(ATTENTION(q, k, v, layout, given, implementation="xla"))
        np.testing.assert_allclose(got[real], want[real], rtol=1e-5, atol=1e-6)
    assert asked == [("cudnn", causal, layout == LAYOUTS[4]), ("cudnn", causal, True)]


def test_kernel_is_chosen_by_platform_and_shape():
    pattern = Pattern((Span(T),))
    assert _choose("auto", "gpu", "bfloat16", 64, pattern) == ("cudnn", "")
    for backend, dtype, size in (
        ("cpu", "bfloat16", 64),
        ("gpu", "float32", 64),
        ("gpu", "bfloat16", 60),
        ("gpu", "float16", 256),
    ):
        assert _choose("auto", backend, dtype, size, pattern) == ("xla", "")
    assert _choose("xla", "gpu", "bfloat16", 64, pattern) == ("xla", "")


def test_unknown_implementation():
    with pytest.raises(
        ValueError, match="'magic' is not one of auto, xla, lean, blockwise, cudnn, splash, ring, ulysses"
    ):
        attention(*inputs(), (Span(T),), implementation="magic")
