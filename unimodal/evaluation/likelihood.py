"""Likelihood of text: bits per byte, which compare whatever the vocabulary, and their baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from unimodal import data
from unimodal.data.blocks import Texts
from unimodal.data.blocks.documents import encodings
from unimodal.evaluation.baselines import bigram_bits
from unimodal.objectives import example_sum, in_chunks, position_cross_entropy

Factors = tuple[jax.Array, jax.Array, jax.Array | None]


def likelihood_rows(
    factors: Factors, targets: jax.Array, weights: jax.Array, sizes: jax.Array, *, chunk: int
) -> dict[str, jax.Array]:
    """Sums over each example's counted positions: `nats`, `correct`, `bytes` and `tokens` [B] float32, and the likeliest
    ids `guesses` [B,T].

    factors: as `heads.LanguageModel.factors`. targets, weights: [B,T]. sizes: the bytes of text [B,T] that each target
    stands for where it is. chunk: positions whose logits exist at a time.
    """
    x, kernel, bias = factors

    def read(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        positions = position_cross_entropy(logits, targets)
        return positions.nats, positions.correct, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    nats, correct, best = in_chunks(read, x, kernel, targets, chunk=chunk, bias_V=bias)
    counted = {
        "nats": nats,
        "correct": correct,
        "bytes": sizes.astype(jnp.float32),
        "tokens": jnp.ones(targets.shape, jnp.float32),
    }
    return {name: example_sum(values, weights) for name, values in counted.items()} | {"guesses": best}


def bits_per_byte(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The score of sums of `likelihood_rows`."""
    per_token = float(sums["nats"] / sums["tokens"])
    return {
        "value": float(sums["nats"] / sums["bytes"]) / math.log(2),
        "accuracy": float(sums["correct"] / sums["tokens"]),
        # NaN stays NaN, which min() would hide.
        "perplexity": math.inf if per_token > 700 else math.exp(per_token),
    }


def bigram(source: str, texts: Texts, *, packed: bool = False) -> Callable[[Mapping[str, float]], tuple[float, str]]:
    """The baseline of guessing each id of validation from the one before, by training's counts, in bits per byte."""

    def against(_untrained: Mapping[str, float]) -> tuple[float, str]:
        encode, count = encodings(texts.opened, packed)
        train, valid = (texts.open(source, split) for split in ("train", "validation"))
        seen, ids, sizes = data.all_ids(train, encode), data.all_ids(valid, encode), data.all_ids(valid, count)
        bits = bigram_bits(seen, ids[:-1], ids[1:], texts.opened.vocab_size)
        return bits / float(sizes[1:].mean()), "bigram"

    return against
