"""Several short documents in one row, so that no place is spent on padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from unimodal.data.dataset import Dataset, Made, Source, as_is
from unimodal.data.filling import check_fit, filled
from unimodal.data.shares import refuse_weights
from unimodal.data.text import Encode
from unimodal.errors import UsageError

Row = dict[str, np.ndarray]


def pack(
    documents: Iterable[np.ndarray], length: int, *, open_rows: int = 16, pad_id: int = 0, fit: str = "first_fit"
) -> Iterator[Row]:
    """Packs documents of ids into rows of `length`, deterministic.

    first_fit: greedy and streaming. A document goes into the oldest open row with room for it; when none has room a new row
    is opened, and when `open_rows` are open already the oldest is given out first. A row that fills up is given out at once.
    best_fit: all documents are taken first, and packed by `filling.filled`. Documents longer than `length` are cut into
    pieces of at most `length`, each a segment of its own; empty ones are left out.

    Yields dicts of `[length]` int32 arrays: `ids`; `segment` (1, 2, … per row, 0 = padding); `position` (0, 1, …
    within each segment, 0 on padding). Raises UsageError when `length` or `open_rows` is below 1.
    """
    if length < 1 or open_rows < 1:
        raise UsageError(f"length and open_rows must be at least 1, found length={length} open_rows={open_rows}")
    check_fit(fit, "fit")
    return _pack(documents, length, open_rows, pad_id) if fit == "first_fit" else _pack_best(documents, length, pad_id)


def packed_rows(
    documents: Source,
    encode: Encode,
    length: int,
    *,
    count: Encode | None = None,
    field: str = "text",
    pad_id: int = 0,
    fit: str = "first_fit",
) -> Dataset:
    """All documents, encoded once and packed once, as a Dataset of the rows that `pack` gives.

    count: text → the bytes of each id that `encode` makes of it; rows then have `bytes` `[length]` int32 too. Raises
    UsageError when all documents are empty, and as `pack` does.
    """
    refuse_weights(documents, "packed rows")
    texts = [documents[i][field] for i in range(len(documents))]
    rows = list(pack(map(encode, texts), length, pad_id=pad_id, fit=fit))
    if not rows:
        raise UsageError("no text: every document is empty")
    arrays = {name: _column(rows, name) for name in tuple(rows[0])}
    if count is not None:
        # Where a document goes depends on its length alone.
        arrays["bytes"] = _column(list(pack(map(count, texts), length, fit=fit)), "ids")
    return Dataset(Made(arrays | {"id": np.array([f"row{i}" for i in range(len(rows))])}), as_is)


def _column(rows: list[Row], name: str) -> np.ndarray:
    """One array of all rows, `[N, length]`, taken out of them: both are never there whole."""
    return np.stack([row.pop(name) for row in rows])


def _pack(documents: Iterable[np.ndarray], length: int, open_rows: int, pad_id: int) -> Iterator[Row]:
    rows: list[list[np.ndarray]] = []
    room: list[int] = []
    for document in documents:
        for start in range(0, len(document), length):
            piece = document[start : start + length]
            index = next((i for i, free in enumerate(room) if free >= len(piece)), None)
            if index is None:
                if len(rows) == open_rows:
                    room.pop(0)
                    yield _row(rows.pop(0), length, pad_id)
                rows.append([])
                room.append(length)
                index = len(rows) - 1
            rows[index].append(piece)
            room[index] -= len(piece)
            if room[index] == 0:
                room.pop(index)
                yield _row(rows.pop(index), length, pad_id)
    for pieces in rows:
        yield _row(pieces, length, pad_id)


def _pack_best(documents: Iterable[np.ndarray], length: int, pad_id: int) -> Iterator[Row]:
    pieces = [d[start : start + length] for d in documents for start in range(0, len(d), length)]
    for row in filled([len(piece) for piece in pieces], length):
        yield _row([pieces[place] for place in row], length, pad_id)


def _row(pieces: list[np.ndarray], length: int, pad_id: int) -> Row:
    row = {
        "ids": np.full(length, pad_id, dtype=np.int32),
        "segment": np.zeros(length, dtype=np.int32),
        "position": np.zeros(length, dtype=np.int32),
    }
    start = 0
    for segment, piece in enumerate(pieces, 1):
        stop = start + len(piece)
        row["ids"][start:stop] = piece
        row["segment"][start:stop] = segment
        row["position"][start:stop] = np.arange(len(piece))
        start = stop
    return row
