"""Weights added, subtracted and merged: functions of arrays, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

PIECE = 1 << 22  # numbers that are held in a wider type at a time


def in_pieces(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """A function of arrays of one shape, number by number, in float64; the result has the type of the first array."""
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    flat, given = out.reshape(-1), [array.reshape(-1) for array in arrays]
    for first in range(0, flat.size, PIECE):
        part = slice(first, first + PIECE)
        flat[part] = function(*(array[part].astype(np.float64) for array in given)).astype(out.dtype)
    return out


def mean(tensors: Sequence[np.ndarray]) -> np.ndarray:
    """The plain mean (model soups, Wortsman 2022)."""
    return in_pieces(lambda *t: sum(t) / len(t), *tensors)


def moved(weights: np.ndarray, after: np.ndarray, before: np.ndarray, scale: float) -> np.ndarray:
    """weights + scale · (after − before): task arithmetic; a negative scale forgets (Ilharco 2023, §2)."""
    return in_pieces(lambda w, a, b: w + scale * (a - b), weights, after, before)


def task_arithmetic(base: np.ndarray, tensors: Sequence[np.ndarray], scale: float) -> np.ndarray:
    """base + scale · Σ (tensor − base) (Ilharco 2023, §2)."""
    return in_pieces(lambda b, *t: b + scale * sum(each - b for each in t), base, *tensors)


def ties(base: np.ndarray, tensors: Sequence[np.ndarray], least: Sequence[float], scale: float) -> np.ndarray:
    """Trim, elect sign and merge (Yadav 2023, algorithm 1).

    Of each tensor's difference from base only entries of magnitude `least` and more stay. Their sum elects the sign, and
    the mean of those that have it, times scale, is added to base.
    """

    def merged(b: Any, *t: Any) -> Any:
        vectors = [each - b for each in t]
        # In the precision in which `kept_from` has counted them, or the last one that stays could be missed.
        kept = [
            np.where(np.abs(v.astype(np.float32)) >= limit, v, 0.0) for v, limit in zip(vectors, least, strict=True)
        ]
        sign = np.sign(sum(kept))
        agreeing = [np.where((v != 0) & (np.sign(v) == sign), v, 0.0) for v in kept]
        count = sum((v != 0).astype(np.float64) for v in agreeing)
        return b + scale * sum(agreeing) / np.maximum(count, 1)

    return in_pieces(merged, base, *tensors)


def fisher_mean(tensors: Sequence[np.ndarray], fishers: Sequence[np.ndarray], floor: float = 1e-10) -> np.ndarray:
    """Σ Fᵢ·θᵢ / Σ Fᵢ number by number (Matena & Raffel 2022, equation 5); the mean where no F is above `floor`."""
    count = len(tensors)

    def merged(*arrays: Any) -> Any:
        weights, importance = arrays[:count], [np.maximum(f, floor) for f in arrays[count:]]
        return sum(f * w for f, w in zip(importance, weights, strict=True)) / sum(importance)

    return in_pieces(merged, *tensors, *fishers)


def delta(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """after − before, float32."""
    out = in_pieces(lambda a, b: a - b, after.astype(np.float32) if after.itemsize < 4 else after, before)
    return out.astype(np.float32)


def conflict(base: np.ndarray, tensors: Sequence[np.ndarray]) -> tuple[int, int]:
    """Entries that at least two tensors move away from base, and those of them that they move in opposite directions."""
    both = opposite = 0
    flat = [array.reshape(-1) for array in (base, *tensors)]
    for first in range(0, flat[0].size, PIECE):
        part = slice(first, first + PIECE)
        b, *t = (array[part].astype(np.float64) for array in flat)
        signs = np.stack([np.sign(each - b) for each in t])
        up, down = ((signs == way).sum(axis=0) for way in (1, -1))
        both += int((up + down > 1).sum())
        opposite += int(((up > 0) & (down > 0)).sum())
    return both, opposite


def kept_from(deltas: Callable[[], Iterable[np.ndarray]], share: float) -> float:
    """The magnitude from which on the largest `share` of all numbers stay, exactly.

    deltas: gives the arrays anew at each call. They are gone through twice, and none is kept: for magnitudes in float32
    the order of the bits is that of the numbers, so the upper half of the bits is counted first, then the lower.
    """
    upper = np.zeros(1 << 16, np.int64)
    for bits in _bits(deltas()):
        upper += np.bincount(bits >> 16, minlength=1 << 16)
    wanted = round(share * int(upper.sum()))
    if wanted < 1:
        return np.inf
    high, left = _place(upper, wanted)
    lower = np.zeros(1 << 16, np.int64)
    for bits in _bits(deltas()):
        lower += np.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low, _ = _place(lower, left)
    return float(np.uint32(high << 16 | low).view(np.float32))


def _bits(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for array in arrays:
        flat = array.reshape(-1)
        for first in range(0, flat.size, PIECE):
            magnitude = np.abs(flat[first : first + PIECE].astype(np.float32))
            yield magnitude.view(np.uint32).astype(np.int64)


def _place(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """The bin of the number that is `wanted`-th from above, and how many of that bin are wanted."""
    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, wanted))
    return len(counts) - 1 - place, wanted - int(from_above[place] - counts[::-1][place])
