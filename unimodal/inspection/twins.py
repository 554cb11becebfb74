"""Records that are in two splits: the same bytes or words, or what differs by a hair."""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.dataset import Source
from unimodal.data.pictures import decode_image
from unimodal.errors import RecordError

_OF_PLACE = ("id", "file_name", "path", "rate")


def content(record: Mapping[str, Any]) -> str:
    """A hash of what a record says, whatever it is called."""
    digest = hashlib.sha256()
    for name in sorted(record):
        if name not in _OF_PLACE and not name.startswith("_"):
            value = record[name]
            digest.update(f"{name}=".encode())
            digest.update(value if isinstance(value, bytes) else repr(np.asarray(value).tolist()).encode())
    return digest.hexdigest()


def nearly(record: Mapping[str, Any]) -> str | None:
    """A word that records have in common which differ by a hair only; None where a record has no picture and no text.

    Pictures: whether each of 8×8 cells is brighter than its right neighbour (a difference hash of 64 bits). Texts: letters
    and digits alone, in small letters.
    """
    for name, value in record.items():
        if isinstance(value, bytes) and name not in ("audio", "sound", "speech"):
            try:
                gray = Image.fromarray(decode_image(value, at_least=(16, 16))).convert("L").resize((9, 8))
            except RecordError:
                continue
            pixels = np.asarray(gray).astype(int)
            if np.ptp(pixels) < 8:  # all of one colour: nothing to compare
                return None
            return f"{name}:{np.packbits(pixels[:, 1:] > pixels[:, :-1]).tobytes().hex()}"
    text = " ".join(
        str(value) for name, value in sorted(record.items()) if isinstance(value, str) and name not in _OF_PLACE
    )
    words = re.sub(r"\W+", " ", text.lower()).strip()
    return f"text:{words}" if words else None


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
