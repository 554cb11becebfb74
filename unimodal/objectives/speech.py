"""wav2vec 2.0 (Baevski et al. 2020): pick the true quantised frame among distractors, and keep the codebook in use.

G codebooks of V entries quantise each frame; N distractors stand against each masked frame.
"""

from typing import Any

import jax
import jax.numpy as jnp

from unimodal.objectives.contrastive import unit
from unimodal.objectives.reduction import Metrics, Scalar, as_scalar, example_mean, example_sum
from unimodal.objectives.terms import WholeBatch


def sample_negatives(key: jax.Array, mask_BT: jax.Array, n: int) -> jax.Array:
    """Distractors for each masked frame: uniform, with replacement, from the *other* masked frames of its utterance.

    Returns:
        `[B,T,n]` int32 places in T. -1 means none: at unmasked frames, and where the frame is its utterance's only
        masked one. Shapes are fixed; nothing depends on how many frames are masked.
    """
    mask = mask_BT.astype(bool)
    count_B11 = mask.sum(axis=1, dtype=jnp.int32)[:, None, None]
    # Draw a rank among the other masked frames (skipping one's own), then look up which frame has that rank.
    own_rank = (jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1)[:, :, None]
    drawn = jax.random.randint(key, (*mask.shape, n), 0, jnp.maximum(count_B11 - 1, 1), jnp.int32)
    drawn = drawn + (drawn >= own_rank).astype(jnp.int32)
    frame_of_rank = jnp.argsort(~mask, axis=1, stable=True).astype(jnp.int32)[:, None, :]
    chosen = jnp.take_along_axis(frame_of_rank, jnp.clip(drawn, 0, mask.shape[1] - 1), axis=2)
    return jnp.where(mask[:, :, None] & (count_B11 > 1), chosen, -1)


def wav2vec2_contrastive(
    context_BTC: jax.Array,
    quantised_BTC: jax.Array,
    mask_BT: jax.Array,
    negatives_BTN: jax.Array,
    temperature: Scalar = 0.1,
    *,
    codes_BTG: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Contrastive loss over masked frames (eq. 3), cosine similarity over temperature.

    A distractor is left out when it is -1, lies off the mask, or has the same quantised vector as the target (which the
    model could not tell apart, and which is common while the codebook is young).

    Args:
        context_BTC: projected outputs of the backbone.
        quantised_BTC: projected outputs of the quantiser.
        mask_BT: True at masked (predicted) frames.
        negatives_BTN: places in T, as `sample_negatives` draws them.
        codes_BTG: the integer codes, by which sameness is then judged. Without them it is judged by the vectors' bits,
            which asks of the device that equal codes give equal vectors.

    Returns:
        loss `[B]` float32 in nats per masked frame, and sums `objective`, `frames` (masked), `contested` (with at least
        one distractor left) and `correct` (contested frames that pick the true target). `correct / frames` is 0 for a
        collapsed codebook, although its loss is 0 too.
    """
    nats, contested, right = frame_choices(context_BTC, quantised_BTC, mask_BT, negatives_BTN, codes_BTG, temperature)
    weights = mask_BT.astype(jnp.float32)
    return example_mean(nats, weights), {
        "objective": example_sum(nats, weights).sum(),
        "frames": weights.sum(),
        "contested": example_sum(contested, weights).sum(),
        "correct": example_sum(right, weights).sum(),
    }


def frame_choices(
    context_BTC: jax.Array,
    quantised_BTC: jax.Array,
    mask_BT: jax.Array,
    negatives_BTN: jax.Array,
    codes_BTG: jax.Array | None,
    temperature: Scalar = 0.1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compare each frame with its own target and its distractors; arguments as in `wav2vec2_contrastive`.

    Returns three arrays [B,T]: nats in float32, whether a distractor is left (`contested`), and whether a contested frame
    picks the true target. Only masked frames mean anything.
    """
    mask = mask_BT.astype(bool)
    context = unit(jnp.where(mask[:, :, None], context_BTC, 0.0))
    target = unit(jnp.where(mask[:, :, None], quantised_BTC, 0.0))
    # All T² products and then a choice among them: a tenth of the memory of gathering N vectors for each frame.
    precision = jax.lax.Precision.HIGHEST
    cosine_BTT = jnp.einsum("btc,bsc->bts", context, target, precision=precision)
    own = jax.lax.broadcasted_iota(jnp.int32, (*mask.shape, 1), 1)
    place = jnp.maximum(negatives_BTN, 0).astype(jnp.int32)
    candidates = jnp.concatenate([own, place], axis=2)
    logits = jnp.take_along_axis(cosine_BTT, candidates, axis=2) / as_scalar(temperature)

    codes = _fingerprint(quantised_BTC) if codes_BTG is None else codes_BTG
    codes_there = jnp.take_along_axis(codes[:, None, :, :], place[..., None], axis=2)
    differs = (codes_there != codes[:, :, None, :]).any(axis=-1)
    on_mask = jnp.take_along_axis(mask[:, None, :], place, axis=2)
    allowed = (negatives_BTN >= 0) & on_mask & differs & mask[:, :, None]

    keep = jnp.concatenate([jnp.ones_like(allowed[:, :, :1]), allowed], axis=2)
    contested = allowed.any(axis=2)
    # Codes that are NaN look all the same, and their frames uncontested: times 0, their NaN comes through all the same.
    nats = jnp.where(contested, jax.nn.logsumexp(logits, axis=2, where=keep) - logits[:, :, 0], 0.0 * logits[:, :, 0])
    beaten = (allowed & ~(logits[:, :, :1] > logits[:, :, 1:])).any(axis=2)
    return nats, contested, contested & ~beaten


def _fingerprint(x_BTC: jax.Array) -> jax.Array:
    """Two 32-bit hashes of each vector's bits, `[B,T,2]` uint32: equal vectors agree, others collide once in 2⁶⁴.

    Comparing hashes instead of vectors saves a factor C of work over every (frame, distractor) pair.
    """
    # + 0.0 makes -0.0 and 0.0 the same bits, as they are the same number.
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x_BTC).astype(jnp.float32) + 0.0, jnp.uint32)
    channel = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, bits.ndim - 1)

    def mixed(seed: int) -> jax.Array:
        word = bits ^ (channel * jnp.uint32(0x9E3779B9) + jnp.uint32(seed))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            word = (word ^ (word >> jnp.uint32(shift))) * jnp.uint32(factor)
        return (word ^ (word >> jnp.uint32(16))).sum(axis=-1, dtype=jnp.uint32)

    return jnp.stack([mixed(0x243F6A88), mixed(0xB7E15162)], axis=-1)


def code_perplexity(probabilities_BTGV: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """Effective number of codes in use in each codebook, `[G]` float32 between 1 (collapsed) and V (uniform).

    exp of the entropy of the *average* distribution over the frames in `mask_BT`. One-hot codes give the perplexity of
    what is used, soft probabilities that of what is believed. The sum over G is what fairseq and Hugging Face log.
    """
    return _perplexity(*_use(probabilities_BTGV, mask_BT))


def _use(probabilities_BTGV: jax.Array, mask_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Probabilities `[G,V]` summed over the counted frames, and how many these are."""
    weights = mask_BT.astype(jnp.float32)
    kept = jnp.where((weights > 0)[:, :, None, None], probabilities_BTGV.astype(jnp.float32), 0.0)
    return kept.sum(axis=(0, 1)), weights.sum()


def _perplexity(use_GV: jax.Array, frames: jax.Array) -> jax.Array:
    mean_GV = use_GV / jnp.maximum(frames, 1.0)
    # 0 · log 0 is 0, and an entry of exactly no probability gets no gradient rather than an infinite one.
    entropy_G = -(mean_GV * jnp.log(jnp.where(mean_GV > 0, mean_GV, 1.0))).sum(axis=-1)
    return jnp.exp(entropy_G)


def diversity(probabilities_BTGV: jax.Array, mask_BT: jax.Array) -> tuple[jax.Array, Metrics]:
    """Share of the codebooks left unused: (G·V - sum of perplexities) / (G·V), eq. 4 in the form fairseq gave it.

    The one objective that is a scalar: it judges the average over the batch, which no example has alone. 0 when
    uniform, (V-1)/V when collapsed, and 0 with no gradient when no frame counts.

    Args:
        probabilities_BTGV: soft, noise-free code probabilities, as `gumbel_codes` returns them.
        mask_BT: which frames are averaged: the masked ones (Hugging Face), or all that are not padding (fairseq).

    Returns:
        the loss, a float32 scalar, and `code_perplexity`, the mean over codebooks.
    """
    return _unused(*_use(probabilities_BTGV, mask_BT))


def diversity_term(probabilities_BTGV: jax.Array, mask_BT: jax.Array, weight: Scalar) -> WholeBatch:
    """`weight` times `diversity` as a term of a loss, with it as the metric `diversity_loss`.

    When gradients accumulate, the average that it judges is still the whole batch's.
    """
    return WholeBatch(_judge, sums=_use(probabilities_BTGV, mask_BT), shared=as_scalar(weight))


def _judge(use: tuple[jax.Array, jax.Array], _: Any, weight: jax.Array) -> tuple[jax.Array, Metrics]:
    loss, metrics = _unused(*use)
    return weight * loss, {"diversity_loss": loss, **metrics}


def _unused(use_GV: jax.Array, frames: jax.Array) -> tuple[jax.Array, Metrics]:
    perplexity_G = _perplexity(use_GV, frames)
    loss = (use_GV.size - perplexity_G.sum()) / use_GV.size
    return jnp.where(frames > 0, loss, 0.0), {"code_perplexity": perplexity_G.mean()}


def gumbel_codes(logits: jax.Array, key: jax.Array | None, temperature: Scalar) -> tuple[jax.Array, jax.Array]:
    """Straight-through Gumbel-softmax choice of a code (eq. 1; Jang et al. 2017).

    Args:
        logits: `[..., V]`.
        key: noise; None takes the likeliest code, as one does in evaluation.
        temperature: annealed towards a small positive number.

    Returns:
        codes `[..., V]` float32, in value *exactly* one-hot, in gradient the tempered softmax; and the noise-free
        probabilities `[..., V]` float32 for `diversity`.
    """
    logits = logits.astype(jnp.float32)
    noise = 0.0 if key is None else jax.random.gumbel(key, logits.shape, jnp.float32)
    soft = jax.nn.softmax((logits + noise) / as_scalar(temperature), axis=-1)
    hard = jax.nn.one_hot(jnp.argmax(logits + noise, axis=-1), logits.shape[-1], dtype=jnp.float32)
    # soft - soft is exactly 0, so codes stay exactly one-hot: equal codes then give equal vectors, which
    # `wav2vec2_contrastive` goes by.
    return hard + (soft - jax.lax.stop_gradient(soft)), jax.nn.softmax(logits, axis=-1)
