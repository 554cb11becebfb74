"""Similarity ranking: do texts that people call alike lie close together?"""

from __future__ import annotations

import numpy as np


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row of `first` [N,D] with the same row of `second` [N,D]: [N]. A row of zeros gives 0."""
    size = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / np.where(size > 0, size, 1.0)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Linear correlation of two lists of N numbers, in [-1, 1]; NaN where one of them is constant."""
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size else float("nan")


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the ranks of two lists of N numbers; equal numbers share the mean of their ranks. NaN where a number
    is."""
    return pearson(_ranks(a), _ranks(b))


def similarity_ranking(first: np.ndarray, second: np.ndarray, judged: np.ndarray) -> dict[str, float]:
    """Embeddings [N,D] of N pairs of texts against how alike people judged them [N]: the correlations of their cosines
    (semantic textual similarity, as in Reimers 2019, §4)."""
    found = cosine(first, second)
    return {"spearman": spearman(found, judged), "pearson": pearson(found, judged)}


def _ranks(values: np.ndarray) -> np.ndarray:
    if np.isnan(values).any():  # which has no rank, and would be given the highest
        return np.full(len(values), np.nan)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
