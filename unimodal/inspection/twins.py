"""Records that are in two splits: the same bytes or words, or what differs by a hair."""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.dataset import Source
from unimodal.data.pictures import decode_image
from unimodal.errors import RecordError

ALIKE = 0.97  # cosine of two sketches from which on pictures are nearly the same

_OF_PLACE = ("id", "file_name", "path", "rate")
_SKETCH = 8  # cells of a sketch in a row, and rows
_ROWS = 1024  # sketches that are compared at a time


def content(record: Mapping[str, Any]) -> str:
    """A hash of what a record says, whatever it is called."""
    digest = hashlib.sha256()
    for name in sorted(record):
        if name not in _OF_PLACE and not name.startswith("_"):
            value = record[name]
            digest.update(f"{name}=".encode())
            digest.update(value if isinstance(value, bytes) else repr(np.asarray(value).tolist()).encode())
    return digest.hexdigest()


def nearly(record: Mapping[str, Any]) -> np.ndarray | str | None:
    """Return what records have in common that differ by a hair only; None where a record has no picture and no text.

    Pictures: a sketch of 8×8 cells in colour, float32 [192], less its mean and of length one. A picture that was saved again, smaller
    or with more loss, has nearly the same. Texts: letters and digits alone, in small letters.
    """
    for name, value in record.items():
        if isinstance(value, bytes) and name not in ("audio", "sound", "speech"):
            try:
                picture = Image.fromarray(decode_image(value, at_least=(8 * _SKETCH, 8 * _SKETCH)))
            except RecordError:
                continue
            cells = np.asarray(picture.resize((_SKETCH, _SKETCH), Image.Resampling.BOX)).astype(np.float32).ravel()
            if np.ptp(cells) < 8:  # all of one colour: nothing to compare
                return None
            cells -= cells.mean()
            return cells / np.linalg.norm(cells)
    text = " ".join(
        str(value) for name, value in sorted(record.items()) if isinstance(value, str) and name not in _OF_PLACE
    )
    return re.sub(r"\W+", " ", text.lower()).strip() or None


def alike(
    parts: Mapping[str, Sequence[tuple[str, np.ndarray | str | None]]], least: float = ALIKE
) -> list[tuple[str, ...]]:
    """For each record of a split the one of an earlier split that is most like it, if it is nearly the same: pairs of ids.

    parts: split → (id, what `nearly` gives).
    """
    texts = {split: [(name, key) for name, key in pairs if isinstance(key, str)] for split, pairs in parts.items()}
    found = shared(texts)
    pictures = {
        split: [(name, key) for name, key in pairs if isinstance(key, np.ndarray)] for split, pairs in parts.items()
    }
    drawn = [(split, pairs) for split, pairs in pictures.items() if pairs]
    for place, (later, rows) in enumerate(drawn):
        for earlier, others in drawn[:place]:
            keys = np.stack([key for _, key in others])
            for start in range(0, len(rows), _ROWS):
                cosines = np.stack([key for _, key in rows[start : start + _ROWS]]) @ keys.T
                best = cosines.argmax(axis=1)
                for i in np.flatnonzero(cosines.max(axis=1) >= least):
                    found.append((f"{earlier}: {others[best[i]][0]}", f"{later}: {rows[start + i][0]}"))
    return found


def shared(parts: Mapping[str, Iterable[tuple[str, str | None]]]) -> list[tuple[str, ...]]:
    """Ids that have one key in two splits or more: parts is split → (id, key)."""
    seen: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for split, pairs in parts.items():
        for name, key in pairs:
            if key is not None:
                seen[key].setdefault(split, name)
    return [tuple(f"{split}: {name}" for split, name in found.items()) for found in seen.values() if len(found) > 1]


def records_of(source: Source, limit: int) -> Iterable[dict[str, Any]]:
    """Read up to `limit` records at even distances; those that cannot be read are left out."""
    count = min(len(source), limit)
    for i in range(count):
        try:
            yield source[i * len(source) // count]
        except RecordError:
            continue
