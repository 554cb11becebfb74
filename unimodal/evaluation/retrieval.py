"""Finding the partner: recall at k between two sets of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ranks(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """For unit embeddings [N,D], [N,D] whose rows are pairs: how many keys beat each query's own (0 = found first).

    Ties count against the query, so that collapsed embeddings score nothing.
    """
    similarity = queries @ keys.T
    own = np.diag(similarity)[:, None]
    return (similarity >= own).sum(axis=1) - 1


def recall(queries: np.ndarray, keys: np.ndarray, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at each k, averaged over both directions."""
    there, back = ranks(queries, keys), ranks(keys, queries)
    return {f"recall@{k}": float(((there < k).mean() + (back < k).mean()) / 2) for k in at}


def mean_reciprocal_rank(queries: np.ndarray, keys: np.ndarray) -> float:
    """Mean of 1 / (1 + rank), averaged over both directions: 1 where every partner is found first."""
    there, back = ranks(queries, keys), ranks(keys, queries)
    return float((1 / (1 + there)).mean() + (1 / (1 + back)).mean()) / 2
