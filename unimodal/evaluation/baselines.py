"""Numbers that need no model: what a trained one has to beat."""

from __future__ import annotations

import numpy as np

DRAWS = 2000  # orders of texts that `chance_recall` looks at


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


def chance_recall(candidates: int, k: int, same: np.ndarray | None = None) -> float:
    """Expected recall at k of ranking `candidates` at random, averaged over both directions; NaN of none.

    same: [candidates], equal for pairs whose texts are, which are not each other's rivals. A model gives equal texts one
    rank, whatever it has learned: with two captions for all pictures one of two is first. So from pictures to texts it is the
    texts that are put in a random order (2,000 of them are drawn), and from texts to pictures the pictures.
    """
    if not candidates:
        return float("nan")
    sizes = np.ones(candidates) if same is None else np.unique(same, return_counts=True)[1].astype(np.float64)
    if (sizes == 1).all():
        return min(1.0, k / candidates)
    # Divide last: what is found for certain must not be less than 1 by rounding, or finding it would beat chance.
    back = (sizes * np.minimum(1.0, k / (candidates - sizes + 1))).sum() / candidates
    rng, there = np.random.default_rng(0), 0.0
    for _ in range(DRAWS):
        first = rng.choice(len(sizes), min(k, len(sizes)), replace=False)
        there += sizes[first][np.cumsum(sizes[first]) - sizes[first] < k].sum()
    return float((there / (DRAWS * candidates) + back) / 2)
