"""Counts of the bytes of a text that each of its ids stands for."""

from __future__ import annotations

import numpy as np


def as_unicode(text: str) -> str:
    """`text` with "?" for lone surrogates, which no encoding of Unicode can write."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def share_bytes(text: str, ends: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Bytes of UTF-8 `[T]` int32 that each id stands for; they sum to all of `text`, if it has an id at all.

    ends `[T]`: the character of `text` at which each id ends. An id takes what lies between the end of the id before
    and its own, so spaces and characters that normalisation removed count for the id after them, and for the last id
    where none comes after. Ids that end at the same character share it: from the back each takes what it stands for
    when `alone` `[T]`, and the first of them the rest.
    """
    if not len(ends):
        return np.zeros(0, np.int32)
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
    ends = np.maximum.accumulate(np.minimum(ends, len(text)))
    ends[ends == ends[-1]] = len(text)
    counts = np.diff(np.concatenate([[0], np.cumsum(sizes)])[ends], prepend=0).astype(np.int32)
    firsts = np.flatnonzero(np.diff(ends, prepend=-1))
    lasts = np.append(firsts[1:], len(ends)) - 1
    for first, last in zip(firsts[lasts > firsts], lasts[lasts > firsts], strict=True):
        left = counts[first]
        for i in range(last, first, -1):
            counts[i] = min(left, alone[i])
            left -= counts[i]
        counts[first] = left
    return counts
