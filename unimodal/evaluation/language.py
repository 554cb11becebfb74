"""Perplexity and bits per byte of text, for any model that gives next-token logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.data.encoders import Encoder
from unimodal.errors import UsageError
from unimodal.objectives import cross_entropy


@dataclass(frozen=True)
class Likelihood:
    """Sums over the tokens that were foretold: their nats, how many they are, and the bytes they stand for.

    The unknown is foretold like any token, but stands for no bytes: an encoder that lacks characters pays for them.
    """

    nats: float  # negative log-likelihood
    tokens: int  # how many were foretold
    bytes: int  # of UTF-8 text that they stand for

    @property
    def perplexity(self) -> float:
        """Per token: comparable between models of one vocabulary only."""
        with np.errstate(over="ignore"):
            return float(np.exp(np.float64(self.nats / self.tokens)))  # infinite where math.exp would raise

    @property
    def bits_per_byte(self) -> float:
        """Comparable whatever the vocabulary; NaN where every token is unknown."""
        return self.nats / self.bytes / math.log(2) if self.bytes else math.nan


def text_likelihood(
    logits: Callable[[jax.Array], jax.Array],
    texts: Iterable[str],
    encoder: Encoder,
    *,
    length: int,
    stride: int | None = None,
    batch_size: int = 8,
) -> Likelihood:
    """The likelihood of `texts` under `logits`: ids [B,T] → [B,T,V], each for the token after it.

    Texts longer than `length` are read in windows that begin every `stride` tokens (default: half of `length`); each
    token is counted once, in the first window that it stands in with a token before it, so that it is foretold from as
    much as there is of `length - stride` tokens or more. Where the encoder has a BOS, texts begin with it and their
    first token counts too. `logits` is compiled once.

    Raises UsageError for a length below 2, a stride outside [1, length - 1], or when no text has two tokens.
    """
    stride = max(1, length // 2) if stride is None else stride
    if length < 2 or not 1 <= stride < length:
        raise UsageError(f"need length of 2 or more and 1 <= stride < length, found length={length} stride={stride}")

    @jax.jit
    def count(ids: jax.Array, weights: jax.Array) -> jax.Array:
        # Roll, so that shapes stay; the last place wraps around, and its weight is 0.
        targets = jnp.roll(ids, -1, axis=1)
        _, sums = cross_entropy(logits(ids), targets, weights)
        return sums["nats"]

    nats, tokens, size = 0.0, 0, 0
    for ids, sizes, weights in _batches(_windows(texts, encoder, length, stride), batch_size, length):
        nats += float(count(jnp.asarray(ids), jnp.asarray(weights)))
        foretold = sizes[:, 1:][weights[:, :-1] > 0]
        tokens, size = tokens + foretold.size, size + int(foretold.sum())
    if not tokens:
        raise UsageError("no text has two tokens or more, so there is nothing to foretell")
    return Likelihood(nats, tokens, size)


def _windows(
    texts: Iterable[str], encoder: Encoder, length: int, stride: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Windows of ids, the bytes of each id, and how many of a window's tokens were counted already."""
    begin = [i for i in (encoder.BOS,) if i >= 0]
    for text in texts:
        ids, sizes = encoder.counted(text)
        ids = np.concatenate([begin, ids]).astype(np.int32)
        sizes = np.concatenate([[0] * len(begin), sizes]).astype(np.int32)
        counted = 1  # the first token has nothing before it
        # Let windows overlap: a token at the start of one would be foretold from nothing.
        for start in range(0, len(ids), stride):
            window = ids[start : start + length]
            if start + len(window) > counted:
                yield window, sizes[start : start + length], counted - start
                counted = start + len(window)


def _batches(
    windows: Iterable[tuple[np.ndarray, np.ndarray, int]], batch_size: int, length: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids and their bytes [batch_size,length], padded with 0 at their ends, and weights: 1 where the next token is to be
    counted."""
    ids, weights = np.zeros((batch_size, length), np.int32), np.zeros((batch_size, length), np.float32)
    sizes, row = np.zeros_like(ids), 0
    for window, size, counted in windows:
        ids[row, : len(window)], sizes[row, : len(window)] = window, size
        weights[row, counted - 1 : len(window) - 1] = 1.0
        row += 1
        if row == batch_size:
            yield ids, sizes, weights
            ids, sizes, weights, row = np.zeros_like(ids), np.zeros_like(sizes), np.zeros_like(weights), 0
    if row:
        yield ids, sizes, weights
