"""Which examples share a row: bins of one size, filled by their lengths."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from unimodal.data.dataset import Source
from unimodal.data.spec import STAND_IN
from unimodal.data.values import id_at
from unimodal.errors import UsageError

FITS = ("first_fit", "best_fit")


def check_fit(fit: str, where: str) -> None:
    """Raises UsageError for a word that is not among FITS."""
    if fit not in FITS:
        raise UsageError(f"{where} must be {' or '.join(FITS)}, but is {fit!r}")


def filled(lengths: Sequence[int], length: int, *, most: int = 0, fit: str = "best_fit") -> list[list[int]]:
    """Rows of at most `length` in all, each the places of what is in it, ascending; what has no length is left out.

    most: so many in a row at most; 0: any number. first_fit: each goes into the oldest row with room for it, in the order
    given. best_fit: the longest come first, and each goes into the fullest row with room for it (best-fit-decreasing, as
    Ding 2024 packs documents). Raises UsageError for one that is longer than a row.
    """
    check_fit(fit, "fit")
    if max(lengths, default=0) > length:
        raise UsageError(f"a length of {max(lengths)} does not fit into a row of {length}")
    return _best_fit(lengths, length, most) if fit == "best_fit" else _first_fit(lengths, length, most)


def _first_fit(lengths: Sequence[int], length: int, most: int) -> list[list[int]]:
    """By a tree of maxima over the rows' room, which finds the oldest row in log(rows)."""
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    room = [length] * (2 * leaves)
    rows: list[list[int]] = []
    for place, size in enumerate(lengths):
        if not size:
            continue
        node = 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= size else 2 * node + 1
        row = node - leaves
        if row == len(rows):
            rows.append([])
        rows[row].append(place)
        room[node] = 0 if len(rows[row]) == most else room[node] - size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


def _best_fit(lengths: Sequence[int], length: int, most: int) -> list[list[int]]:
    rows: list[list[int]] = []
    having: dict[int, list[int]] = {}  # room → the rows that have it
    rooms: list[int] = []  # ascending
    for place in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        size = int(lengths[place])
        if not size:
            break
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[at]
            row = having[room].pop()
            if not having[room]:
                del rooms[at], having[room]
        rows[row].append(place)
        left = room - size
        if left and len(rows[row]) != most:
            if left not in having:
                bisect.insort(rooms, left)
                having[left] = []
            having[left].append(row)
    return [sorted(row) for row in rows]


@dataclasses.dataclass(frozen=True)
class Packing:
    """Several examples in one row, each seeing itself alone, so that little of what is computed is padding."""

    row: float = 0.0  # length of a row, in patches or seconds; 0: one example a row
    most: int = 16  # examples in a row, at most
    fit: str = "best_fit"  # best_fit (the longest first, each into the fullest row with room) or first_fit

    def __post_init__(self) -> None:
        if self.row < 0 or self.most < 1:
            raise UsageError(f"pack.row and pack.most must be at least 0 and 1, but are {self.row:g} and {self.most}")
        check_fit(self.fit, "pack.fit")


@dataclasses.dataclass(frozen=True)
class Together:
    """A source whose record i holds the records `rows[i]` of another, under "records"."""

    source: Source
    rows: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        records = [self.source[place] for place in self.rows[index]]
        name = " + ".join(str(record["id"]) for record in records)
        stands_in = {STAND_IN: True} if any(record.get(STAND_IN) for record in records) else {}
        return {"id": name, "records": records, "places": self.rows[index], **stands_in}

    def id_at(self, index: int) -> str:
        """The ids of all in the row."""
        return " + ".join(id_at(self.source, place) for place in self.rows[index])
