"""Splits of what has none: which records are for training and which are held out, by a hash of each record's key.

A record stays in its split when others are added, and records with one key are never on both sides. Both hold whatever the
order of the records, so nothing leaks: a split is taken before anything is shuffled.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unimodal.data.dataset import Source
from unimodal.data.values import column, id_at
from unimodal.errors import UsageError

SHARE = 0.1
"""Of validation, where nothing is said."""
_BLOCK = 1 << 20  # keys at a time


@dataclasses.dataclass(frozen=True)
class Picked:
    """Some records of a source."""

    source: Source  # of all records
    places: np.ndarray = dataclasses.field(repr=False, compare=False)  # whole numbers [N]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.places[index])]

    def id_at(self, index: int) -> str:
        """The record's id."""
        return id_at(self.source, int(self.places[index]))

    def column(self, name: str) -> list[Any]:
        """The values under `name`."""
        source, places = self.source, self.places
        while isinstance(source, Picked):
            source, places = source.source, source.places[places]
        return column(source, name, places)


def divided(
    source: Source,
    split: str,
    shares: Mapping[str, float],
    *,
    where: str,
    keys: np.ndarray,
    classes: list[Any] | None = None,
) -> Picked:
    """The records of one split of `source`.

    shares: split → share of the records; "train" has the rest. keys: a hash of each record's key, uint64 [N]. classes: a
    value of each record; then the share is one of each class by itself, and every class with two records or more is on
    both sides. Raises UsageError for a split that would be empty.
    """
    names = ["train", *shares]
    if len(keys) < len(names):
        raise UsageError(f"{where} has {len(keys)} records, which cannot be divided into {' and '.join(names)}")
    if classes is None:
        chosen = _assign(keys, shares)
    else:
        codes = np.unique(np.array([str(value) for value in classes]), return_inverse=True)[1]
        chosen = np.zeros(len(keys), np.int8)
        for code in range(codes.max() + 1):
            members = np.flatnonzero(codes == code)
            chosen[members] = _rank(keys[members], shares)
    places = _places(chosen, names.index(split))
    if not len(places):
        raise UsageError(f"split {split!r} of {where} is empty: all its {len(keys)} records have one key")
    return Picked(source, places)


def _places(chosen: np.ndarray, number: int) -> np.ndarray:
    """Where `chosen` is `number`, in as few bytes as the count of records allows."""
    dtype = np.uint32 if len(chosen) <= 2**32 else np.int64
    blocks = [
        (np.flatnonzero(chosen[first : first + _BLOCK] == number) + first).astype(dtype)
        for first in range(0, len(chosen), _BLOCK)
    ]
    return np.concatenate(blocks)


def _assign(keys: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    """The split of each key, 0 for train; no split stays empty where there are keys enough."""
    chosen = np.zeros(len(keys), np.int8)
    for first in range(
        0, len(keys), _BLOCK
    ):  # in blocks: a table of ten million rows takes little room beside its keys
        place, begin = keys[first : first + _BLOCK].astype(np.float64) / 2.0**64, 0.0
        block = chosen[first : first + _BLOCK]
        for number, share in enumerate(shares.values(), start=1):
            block[(place >= begin) & (place < begin + share)] = number
            begin += share
    for number in range(len(shares) + 1):  # a handful of records: the lowest keys are held out, the highest trained on
        if not (chosen == number).any() and len(ordered := np.unique(keys)) > len(shares):
            key = ordered[-1] if number == 0 else ordered[number - 1]
            chosen[keys == key] = number
    return chosen


def _rank(keys: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    """The same with exact shares: the records with the lowest keys are held out. Equal keys stay together."""
    ordered, inverse = np.unique(keys, return_inverse=True)
    chosen, begin = np.zeros(len(ordered), np.int8), 0
    for number, share in enumerate(shares.values(), start=1):
        count = min(max(1, round(share * len(ordered))), max(0, len(ordered) - begin - 1))
        chosen[begin : begin + count] = number
        begin += count
    return chosen[inverse]


def hashed(values: Iterable[Any]) -> np.ndarray:
    """A hash of each value's text, uint64 [N]: the first eight bytes of its SHA-256."""
    digests = (hashlib.sha256(str(value).encode("utf-8", "surrogateescape")).digest()[:8] for value in values)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def mixed(words: np.ndarray) -> np.ndarray:
    """Numbers of any kind as evenly spread uint64 (the finaliser of SplitMix64, Steele 2014). uint64 are changed in place."""
    out = words.astype(np.uint64, copy=False)
    for first in range(0, len(out), _BLOCK):
        z = out[first : first + _BLOCK]  # a view
        z += np.uint64(0x9E3779B97F4A7C15)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return out


def keys_of(source: Source, by: str | None) -> np.ndarray:
    """The records' keys: the values of the column `by`, else what the source takes for them (`source.keys()`), else ids."""
    if by is not None:
        return hashed(column(source, by))
    own = getattr(source, "keys", None)
    return own() if own is not None else hashed(column(source, "id"))
