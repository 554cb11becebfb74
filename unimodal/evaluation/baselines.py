"""Numbers that need no model: what a trained one has to beat."""

from __future__ import annotations

import numpy as np


def majority_accuracy(train_labels: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy on `labels` of always answering the commonest of `train_labels`; NaN where there are none."""
    if not len(train_labels) or not len(labels):
        return float("nan")
    return float((labels == np.bincount(train_labels).argmax()).mean())


def bigram_bits(train_ids: np.ndarray, previous: np.ndarray, ids: np.ndarray, vocabulary: int) -> float:
    """Cross-entropy, in bits per id, of `ids` given the id before each.

    The bigram frequencies of `train_ids` are smoothed with the unigram ones (Dirichlet prior of one pseudo-count per
    context), so that a pair never seen costs no infinity.
    """
    # Count every id once more than seen, so that one that training lacks has a probability.
    unigram = np.bincount(train_ids, minlength=vocabulary) + 1.0
    unigram /= unigram.sum()
    context = np.bincount(train_ids[:-1], minlength=vocabulary)
    # Only the pairs that occur are kept: a table of all would be too large for vocabularies of words.
    pairs, counts = np.unique(train_ids[:-1].astype(np.int64) * vocabulary + train_ids[1:], return_counts=True)
    wanted = previous.astype(np.int64) * vocabulary + ids
    # No pair is numbered -1, which stands for all that are larger than the largest.
    place = np.searchsorted(pairs, wanted)
    found = np.where(np.append(pairs, -1)[place] == wanted, np.append(counts, 0)[place], 0)
    probability = (found + unigram[ids]) / (context[previous] + 1.0)
    return float(-np.log2(probability).mean())


def chance_recall(candidates: int, k: int) -> float:
    """Expected recall at k of ranking `candidates` at random; NaN of none."""
    return min(1.0, k / candidates) if candidates else float("nan")
