"""Spread of features: their effective rank, which shows a collapse (Garrido 2023)."""

from __future__ import annotations

import numpy as np


def effective_rank(features: np.ndarray) -> float:
    """RankMe of features [N,D]: exp of the entropy of their singular values, each as a share of the sum (eq. 1).

    1 where all features point the same way, D where all directions are used alike. NaN where a feature is not finite.
    """
    if not np.isfinite(features).all():
        return float("nan")
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = values / max(values.sum(), 1e-300) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def deviation(features: np.ndarray) -> float:
    """Standard deviation of features [N,D] of unit length, times √D, averaged over D: see
    `objectives.collapse.feature_deviation`."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    return float(unit.std(axis=0, dtype=np.float64).mean() * features.shape[1] ** 0.5)
