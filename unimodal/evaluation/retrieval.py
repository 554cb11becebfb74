"""Finding the partner: recall at k between two sets of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unimodal.evaluation.evaluation import Rows, Streamed

CHUNK = 1024  # queries compared with all keys at a time


def ranks(queries: np.ndarray, keys: np.ndarray, same: np.ndarray | None = None) -> np.ndarray:
    """For unit embeddings [N,D], [N,D] whose rows are pairs: how many keys beat each query's own (0 = found first).

    Ties count against the query, so that collapsed embeddings score nothing. same: [N], equal for pairs that say the
    same thing; these do not count as rivals. NaN where an embedding is NaN.
    """
    found = np.empty(len(queries), np.float64)
    for start in range(0, len(queries), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(queries)))
        similarity = queries[rows] @ keys.T
        own = similarity[np.arange(len(rows)), rows][:, None]
        beaten = similarity >= own
        if same is not None:
            beaten &= same[rows, None] != same[None]
            beaten[np.arange(len(rows)), rows] = True
        found[rows] = np.where(np.isnan(similarity).any(axis=1), np.nan, beaten.sum(axis=1) - 1.0)
    return found


def recall(
    queries: np.ndarray, keys: np.ndarray, at: Sequence[int] = (1, 5, 10), same: np.ndarray | None = None
) -> dict[str, float]:
    """Recall at each k, averaged over both directions."""
    return _recall(ranks(queries, keys, same), ranks(keys, queries, same), at)


def mean_reciprocal_rank(queries: np.ndarray, keys: np.ndarray, same: np.ndarray | None = None) -> float:
    """Mean of 1 / (1 + rank), averaged over both directions: 1 where every partner is found first."""
    return _reciprocal(ranks(queries, keys, same), ranks(keys, queries, same))


def _recall(there: np.ndarray, back: np.ndarray, at: Sequence[int]) -> dict[str, float]:
    both = np.concatenate([there, back])
    return {f"recall@{k}": float(np.where(np.isnan(both), np.nan, both < k).mean()) for k in at}


def _reciprocal(there: np.ndarray, back: np.ndarray) -> float:
    return float((1 / (1 + np.concatenate([there, back]))).mean())


@dataclass
class Pairs:
    """Keeps the embeddings of all pairs: what ranks need."""

    at: int
    parts: list[Rows] = field(default_factory=list)

    def add(self, rows: Rows) -> None:
        self.parts.append({name: rows[name] for name in ("first", "second", "same", "index") if name in rows})

    def all(self, name: str) -> np.ndarray:
        """Embeddings `first` or `second` [N,D], or `same` or `index` [N], of all pairs so far."""
        return np.concatenate([part[name] for part in self.parts])

    def score(self) -> dict[str, float]:
        first, second = self.all("first"), self.all("second")
        same = self.all("same") if "same" in self.parts[0] else None
        there, back = ranks(first, second, same), ranks(second, first, same)
        found = _recall(there, back, sorted({1, 5, 10, self.at}))
        return {"value": found[f"recall@{self.at}"], **found, "reciprocal_rank": _reciprocal(there, back)}


@dataclass(frozen=True, kw_only=True)
class Retrieval(Streamed):
    """Recall at k of finding each pair's other half among all of the split, in both directions.

    `predict` gives unit embeddings `first` and `second` [B,D], and may give `same` [B]: equal for pairs that say the
    same thing, which then are not each other's rivals.
    """

    at: int = 5
    higher_is_better: bool = True

    @property
    def metric(self) -> str:
        return f"recall@{self.at}"

    def tally(self) -> Pairs:
        return Pairs(self.at)
