"""Next-token prediction (GPT): each token predicts the next one of its segment."""

import jax
import jax.numpy as jnp

from unimodal.objectives.reduction import Metrics
from unimodal.objectives.softmax import chunked_cross_entropy, cross_entropy


def next_token_targets(ids_BT: jax.Array, segment_BT: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Targets `[B,T]` and float32 weights `[B,T]` for next-token prediction.

    The weight is 1 where the next token is in the same non-zero segment, so the end of a packed document and padding
    predict nothing. T stays as it is, and the last column has weight 0, because slicing a sharded axis moves data.
    """
    targets = jnp.roll(ids_BT, -1, axis=1)
    inside = jax.lax.broadcasted_iota(jnp.int32, ids_BT.shape, 1) < ids_BT.shape[1] - 1
    if segment_BT is not None:
        inside = inside & (segment_BT != 0) & (segment_BT == jnp.roll(segment_BT, -1, axis=1))
    return targets, inside.astype(jnp.float32)


def shifted_right(ids_BT: jax.Array, first: int) -> jax.Array:
    """Put the id `first` before each row and leave out the last: inputs `[B,T]` whose targets are the row itself."""
    place = jax.lax.broadcasted_iota(jnp.int32, ids_BT.shape, 1)
    return jnp.where(place == 0, jnp.asarray(first, ids_BT.dtype), jnp.roll(ids_BT, 1, axis=1))


def causal_lm(
    logits_BTV: jax.Array,
    ids_BT: jax.Array,
    segment_BT: jax.Array | None = None,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """Compute next-token cross-entropy (Radford et al. 2018, eq. 1).

    Args:
        logits_BTV: logits at the tokens themselves, unshifted.
        ids_BT: the same tokens the model read, integers.
        segment_BT: packed documents, 0 = padding. None: every row is one document.

    Returns:
        loss `[B]` float32 in nats per predicted token, and sums `objective`, `nats`, `correct`, `tokens`.
    """
    targets, weights = next_token_targets(ids_BT, segment_BT)
    return cross_entropy(logits_BTV, targets, weights, z_loss=z_loss, label_smoothing=label_smoothing)


def chunked_causal_lm(
    hidden_BTD: jax.Array,
    table_DV: jax.Array,
    ids_BT: jax.Array,
    segment_BT: jax.Array | None = None,
    *,
    chunk: int = 256,
    bias_V: jax.Array | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """Compute `causal_lm` from hidden states, where all logits would not fit. See `chunked_cross_entropy`."""
    targets, weights = next_token_targets(ids_BT, segment_BT)
    return chunked_cross_entropy(
        hidden_BTD,
        table_DV,
        targets,
        weights,
        chunk=chunk,
        bias_V=bias_V,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
    )


def caption_targets(ids_BT: jax.Array, pad: int, *, backward: bool = False) -> tuple[jax.Array, jax.Array]:
    """Targets `[B,T]` and float32 weights `[B,T]` of a caption that begins with a start token outside the vocabulary.

    Place 0, the start token, predicts the first id, and place t the one after it. A caption's last id predicts its end,
    which is `pad`, unless the caption fills all T places. A `pad` below 0 is no id and is never predicted: such a row's
    own last id is its end. `backward` reads the caption before its end from the back (Desai & Johnson 2021, §3).
    """
    place = jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
    length = jnp.where(ids_BT != pad, place + 1, 0).max(axis=1, keepdims=True) - int(pad < 0)
    if backward:
        reverse = jnp.where(place < length, length - 1 - place, place)
        ids_BT = jnp.take_along_axis(ids_BT, reverse, axis=1)
    return ids_BT, (place <= length).astype(jnp.float32)
