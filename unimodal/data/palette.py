"""Palettes: the colours that stand for all others, by k-means on pixels (Chen 2020, §3.2)."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2

from unimodal.data.image import nearest_color

PICTURES, PIXELS = 500, 100  # of a source that a palette is made of: at most so many pictures, and pixels of each
_ROUNDS = 20


def fit_palette(pixels: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """uint8 `[N, 3]`, N ≤ count: centres of k-means on `pixels` uint8 `[P, 3]`, rounded, from dark to light.

    Pixels of no more than `count` colours are a palette themselves. Starts by k-means++ (Arthur 2007).
    """
    found = np.unique(pixels, axis=0)
    if len(found) > count:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a centre that is nobody's nearest: it stays where it is
            values = pixels.astype(np.float64)
            centres, _ = kmeans2(values, count, iter=_ROUNDS, minit="++", rng=np.random.default_rng(seed))
        found = np.unique(np.clip(np.rint(centres), 0, 255).astype(np.uint8), axis=0)
    return found[np.lexsort((*found.T, found.astype(np.int64).sum(axis=1)))]


def palette_error(pixels: np.ndarray, palette: np.ndarray) -> float:
    """Root mean square distance of `pixels` `[P, 3]` from their nearest colours of `palette`, in levels of 255."""
    nearest = palette[nearest_color(pixels, palette)].astype(np.float64)
    return float(np.sqrt(np.square(pixels - nearest).sum(axis=1).mean()))
