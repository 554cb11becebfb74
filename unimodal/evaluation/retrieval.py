"""Finding the partner: recall at k between two sets of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from unimodal.evaluation.baselines import chance_recall
from unimodal.evaluation.evaluation import Rows, Streamed

CHUNK = 1024  # queries compared at a time, with so many keys:
KEYS = 65_536


def ranks(queries: np.ndarray, keys: np.ndarray, same: np.ndarray | None = None) -> np.ndarray:
    """For unit embeddings [N,D], [N,D] whose rows are pairs: how many keys beat each query's own (0 = found first).

    Ties count against the query, so that collapsed embeddings score nothing. same: [N], equal for pairs that say the
    same thing; these do not count as rivals. NaN where an embedding is NaN.
    """
    found = np.empty(len(queries), np.float64)
    blocks = [np.arange(i, min(i + KEYS, len(keys))) for i in range(0, len(keys), KEYS)]
    for block in blocks:
        for rows in (block[i : i + CHUNK] for i in range(0, len(block), CHUNK)):
            # The block that holds their own keys comes first.
            similarity = queries[rows] @ keys[block].T
            own = similarity[np.arange(len(rows)), rows - block[0]]
            found[rows] = _rivals(similarity, own, rows, block, same)
            for other in blocks:
                if other is not block:
                    found[rows] += _rivals(queries[rows] @ keys[other].T, own, rows, other, same)
    return found


def _rivals(
    similarity: np.ndarray, own: np.ndarray, rows: np.ndarray, columns: np.ndarray, same: np.ndarray | None
) -> np.ndarray:
    """Count the keys of `columns` that beat each query's own key; NaN where a similarity is NaN."""
    # Let ties count against the model: embeddings that have collapsed would otherwise always win.
    beaten = (similarity >= own[:, None]) & (rows[:, None] != columns[None])
    if same is not None:
        beaten &= same[rows][:, None] != same[columns][None]
    return np.where(np.isnan(similarity).any(axis=1), np.nan, beaten.sum(axis=1))


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

    at: int  # a pair counts as found among so many of the nearest
    parts: list[Rows] = field(default_factory=list)  # rows of each batch

    def add(self, rows: Rows) -> None:
        self.parts.append({name: rows[name] for name in ("first", "second", "same", "index") if name in rows})

    def all(self, name: str) -> np.ndarray:
        """Embeddings `first` or `second` [N,D], or `same` or `index` [N], of all pairs so far."""
        return np.concatenate([part[name] for part in self.parts])

    @cached_property
    def ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """How many rivals beat each pair's other half, there and back [N]; once all are added."""
        first, second = self.all("first"), self.all("second")
        return ranks(first, second, self.same), ranks(second, first, self.same)

    @cached_property
    def same(self) -> np.ndarray | None:
        """[N], once all are added."""
        # Ask the first batch: either all of them have it, or none.
        return self.all("same") if "same" in self.parts[0] else None

    def score(self) -> dict[str, float]:
        there, back = self.ranks
        found = _recall(there, back, sorted({1, 5, 10, self.at}))
        ways = {
            f"{way}_{name}": value
            for way, one in (("there", there), ("back", back))
            for name, value in _recall(one, one, (1, 5, 10)).items()
        }
        chance = chance_recall(len(there), self.at, self.same)
        more = {"reciprocal_rank": _reciprocal(there, back), "chance": chance}
        return {"value": found[f"recall@{self.at}"], **found, **ways, **more}


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

    def columns_of(self, tally: Pairs) -> dict[str, np.ndarray]:
        """The share of both directions in which a pair is found among all of the split."""
        both = np.stack(tally.ranks)
        return {"found": np.where(np.isnan(both), np.nan, both < self.at).mean(axis=0)}

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        return float(sums["found"] / sums["examples"])
