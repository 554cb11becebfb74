"""`Tokens`: wrapping, joining, and how positions and segments go on across a join."""

import jax
import jax.numpy as jnp
import numpy as np

from unimodal import Span, concat
from unimodal.tokens import segment_of, tokens

rng = np.random.default_rng(0)


def embeddings(batch, length, width=3):
    return jnp.asarray(rng.standard_normal((batch, length, width), dtype=np.float32))


def integers(*rows):
    return jnp.asarray(rows, jnp.int32)


def test_tokens_default_to_one_segment_counted_from_zero():
    made = tokens(embeddings(2, 4), causal=True)
    assert made.layout == (Span(4, True),) and made.segment is None
    np.testing.assert_array_equal(made.position, [[0, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(segment_of(made), np.ones((2, 4)))
    assert made.position.dtype == segment_of(made).dtype == jnp.int32


def test_what_is_given_is_kept():
    segment, position = integers([1, 1, 2, 0]), integers([0, 1, 0, 0])
    made = tokens(embeddings(1, 4), segment=segment, position=position)
    np.testing.assert_array_equal(made.segment, segment)
    np.testing.assert_array_equal(made.position, position)
    assert made.layout == (Span(4, False),)


def test_with_x_keeps_everything_else():
    made = tokens(embeddings(2, 4), segment=integers([1, 1, 1, 0], [1, 0, 0, 0]))
    other = made.with_x(embeddings(2, 4, 7))
    assert other.x.shape == (2, 4, 7) and other.layout == made.layout
    assert other.segment is made.segment and other.position is made.position


def test_concat_without_segments_counts_on_and_stays_maskless():
    a, b, c = embeddings(2, 3), embeddings(2, 2), embeddings(2, 1)
    joined = concat(tokens(a), tokens(b, causal=True), tokens(c))
    assert joined.layout == (Span(3, False), Span(2, True), Span(1, False))
    assert joined.segment is None
    np.testing.assert_array_equal(joined.position, [[0, 1, 2, 3, 4, 5]] * 2)
    np.testing.assert_array_equal(joined.x, np.concatenate([a, b, c], axis=1))


def test_concat_counts_on_within_each_segment():
    """Images in front of captions: the first row's image is padded, the second row packs two pairs."""
    image = tokens(
        embeddings(2, 4), segment=integers([1, 1, 0, 0], [1, 1, 2, 2]), position=integers([0, 1, 0, 0], [0, 1, 0, 1])
    )
    words = tokens(
        embeddings(2, 5),
        causal=True,
        segment=integers([1, 1, 1, 1, 0], [2, 2, 1, 3, 3]),
        position=integers([0, 1, 2, 3, 0], [0, 1, 0, 0, 1]),
    )
    joined = concat(image, words)
    np.testing.assert_array_equal(joined.segment, [[1, 1, 0, 0, 1, 1, 1, 1, 0], [1, 1, 2, 2, 2, 2, 1, 3, 3]])
    position, segment = np.asarray(joined.position), np.asarray(joined.segment)
    for row_position, row_segment in zip(position, segment, strict=True):
        for name in set(row_segment) - {0}:
            mine = row_position[row_segment == name]
            np.testing.assert_array_equal(mine, np.arange(len(mine)), err_msg=f"segment {name}")


def test_concat_of_one_with_segments_and_one_without():
    plain, padded = tokens(embeddings(2, 2)), tokens(embeddings(2, 3), segment=integers([1, 1, 0], [1, 0, 0]))
    np.testing.assert_array_equal(concat(plain, padded).segment, [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    after = concat(padded, plain)
    np.testing.assert_array_equal(after.segment, [[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]])
    np.testing.assert_array_equal(after.position[:, 3:], [[2, 3], [1, 2]])  # padding was not counted


def test_tokens_pass_through_jit_and_the_layout_is_static():
    traced = []

    @jax.jit
    def double(made):
        traced.append(made.layout)
        return made.with_x(made.x * 2)

    x = embeddings(1, 3)
    out = double(tokens(x, causal=True))
    double(tokens(x + 1, causal=True))
    assert out.layout == (Span(3, True),) and traced == [(Span(3, True),)]
    double(tokens(x))
    assert traced == [(Span(3, True),), (Span(3, False),)]
