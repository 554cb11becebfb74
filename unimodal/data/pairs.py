"""Rows of ids of one text or two, with special ids and sentence types, as BERT reads them (Devlin 2019, §3, figure 2)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from unimodal.data.around import Around
from unimodal.data.dataset import Dataset, Source
from unimodal.data.encoders import Encoder
from unimodal.data.shares import refuse_weights
from unimodal.data.skipped import LEDGER, Where
from unimodal.data.text import fit_length, text_of
from unimodal.data.transcripts import words_of
from unimodal.data.values import id_at
from unimodal.errors import RecordError, UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


def pair_row(
    encoder: Encoder, length: int, first: np.ndarray, second: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Join one text or two with the special ids of the encoder: ids and types, int32 `[length]`.

    The row is `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]` with types 0 and 1, unless the vocabulary comes from
    a checkpoint with another arrangement. A row that is too long loses ids at the end of the longer text. Raises
    UsageError for a length that leaves no room for text.
    """
    return _arrange(encoder.around, length, first, second, fill=encoder.PAD)


def text_ids(encoder: Encoder, text: str) -> np.ndarray:
    """The ids of a text that is read whole, without the blanks around it: in training and when a model is asked alike."""
    return encoder.encode(text.strip())


def _arrange(
    around: Around, length: int, first: np.ndarray, second: np.ndarray | None = None, *, fill: int
) -> tuple[np.ndarray, np.ndarray]:
    room = length - around.count(two=second is not None)
    if room < (1 if second is None else 2):
        raise UsageError(f"rows of length={length} ids have no room for text beside the specials")
    if second is None:
        parts = [(around.before, 0), (first[:room], 0), (around.after, 0)]
    else:
        cut = max(0, len(first) + len(second) - room)
        longer = len(first) - len(second)
        # Cut the longer text down to the other, then both alike.
        from_first = min(cut, max(0, longer)) + max(0, cut - abs(longer)) // 2
        first, second = first[: len(first) - from_first], second[: len(second) - (cut - from_first)]
        between = [((i,), kind) for i, kind in zip(around.between, around.between_types, strict=True)]
        parts = [
            (around.before, 0),
            (first, 0),
            *between,
            (second, around.second_type),
            (around.after, around.second_type),
        ]
    ids = np.concatenate([np.asarray(part, np.int32) for part, _ in parts])
    types = np.concatenate([np.full(len(part), kind, np.int32) for part, kind in parts])
    return fit_length(ids, length, pad_id=fill), fit_length(types, length)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Records that became rows of ids, in memory: a Source."""

    records: tuple[dict[str, Any], ...]  # in order
    skipped: int  # had no text
    cut: int  # were too long for a row

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.records[index])


def text_rows(
    source: Source,
    encoder: Encoder,
    length: int,
    first: Sequence[str],
    second: Sequence[str] = (),
    *,
    keep: Mapping[str, Callable[[dict[str, Any]], Any]] = MappingProxyType({}),
    what: str = "the source",
    where: Where | None = None,
) -> Rows:
    """Every record of a source as a row: `id`, `ids` and `types` of `pair_row`, and what each function in `keep` makes
    of the record.

    first, second: the fields that make each text (see `text_of`). Records in which one of the texts is empty are left
    out, and longer ones cut; both are counted, and logged once each. where: what the source is called; a record that
    cannot be used is then left out and listed (`skipped`). Raises UsageError when nothing is left.
    """
    refuse_weights(source, "rows of texts")
    rows, skipped, cut, specials = [], 0, 0, encoder.around.count(two=bool(second))

    def read(index: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        record = source[index]
        texts = [text_ids(encoder, text_of(record, fields)) for fields in (first, second) if fields]
        kept = keep if all(len(ids) for ids in texts) else {}  # nothing is asked of what is left out
        return {"id": record["id"], **{field: make(record) for field, make in kept.items()}}, texts

    for kept, texts in _used(source, range(len(source)), read, where):
        if not all(len(ids) for ids in texts):
            skipped += 1
            continue
        cut += sum(map(len, texts)) > length - specials
        ids, types = pair_row(encoder, length, *texts)
        rows.append({"ids": ids, "types": types, **kept})
    if not rows:
        raise UsageError(f"no text in {what}: every record is empty")
    if skipped:
        _say_once(f"{skipped} of {len(source)} records of {what} have no text and are left out")
    if cut:
        _say_once(f"{cut} of {len(source)} texts of {what} are longer than length={length} and are cut")
    return Rows(tuple(rows), skipped, cut)


def some_records(source: Source, count: int, where: Where | None = None) -> Rows:
    """`count` records of a source, the same ones always, spread over the whole. Raises UsageError for more than it has.

    where: what the source is called; others then take the place of records that cannot be used, which are listed."""
    if not 0 < count <= len(source):
        raise UsageError(f"cannot take {count} records of {len(source)}")
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    return Rows(tuple(itertools.islice(_used(source, order, source.__getitem__, where), count)), 0, 0)


def _used(source: Source, places: Iterable[int], read: Callable[[int], T], where: Where | None) -> Iterator[T]:
    """What `read` makes of the records at some places, without those that cannot be used, which are listed under `where`;
    None: they raise RecordError."""
    for place in places:
        try:
            made = read(place)
        except RecordError as error:
            if where is None:
                raise
            LEDGER.note(where, id_at(source, place), error, len(source))
            continue
        if where is not None:
            LEDGER.looked(where)
        yield made


def phrases(record: dict[str, Any], fields: Sequence[str]) -> list[str]:
    """The texts of some fields of a record; each of a list of words is one. Raises UsageError as `text_of` does."""
    found: list[str] = []
    for field in fields:
        text_of(record, (field,))
        value: Any = record[field]
        found.extend([value] if isinstance(value, str) else value)
    return [text for text in found if text.strip()]


def text_pairs(
    source: Source,
    first: Sequence[str],
    second: Sequence[str],
    *,
    distinct: bool = False,
    what: str = "the source",
    where: Where | None = None,
) -> Rows:
    """Two texts of every record, as lists of phrases: records of `id`, `first` and `second`, in memory.

    distinct: phrases of the second that share a word with the first are left out. Records in which a text is empty
    (then) are left out, counted, and logged once. where: as of `text_rows`. Raises UsageError when fewer than two are left.
    """
    rows = []

    def read(index: int) -> tuple[str, list[str], list[str]]:
        record = source[index]
        return record["id"], phrases(record, first), phrases(record, second)

    for name, a, b in _used(source, range(len(source)), read, where):
        if distinct:
            seen = words_of(" ".join(a))
            b = [phrase for phrase in b if not seen & words_of(phrase)]
        if a and b:
            rows.append({"id": name, "first": a, "second": b})
    if len(rows) < 2:
        why = ", as phrases that share a word with the first text are left out; distinct=False keeps them"
        raise UsageError(
            f"no pairs of texts in {what}: {len(rows)} of {len(source)} records have both{why if distinct else ''}"
        )
    if skipped := len(source) - len(rows):
        _say_once(f"{skipped} of {len(source)} records of {what} lack one of the texts and are left out")
    return Rows(tuple(rows), skipped, 0)


def some_phrases(texts: list[str], rng: np.random.Generator, keep: float = 0.7) -> list[str]:
    """Phrases in random order, each kept with probability `keep`, at least one."""
    chosen = [texts[i] for i in rng.permutation(len(texts)) if rng.random() < keep]
    return chosen or [texts[int(rng.integers(len(texts)))]]


def next_sentence_rows(
    documents: Source, encoder: Encoder, length: int, *, random: bool, count: bool = False, field: str = "text"
) -> Dataset:
    """Rows of two stretches of text for next-sentence prediction (Devlin 2019, appendix A.2): a Dataset of
    `{"ids", "types": [length] int32, "next": int32}`, and with `count` the `bytes` `[length]` int32 of each id.

    Half of the time the second stretch goes on where the first ended (`next` = 1), else it is from another document.
    Stretches begin and end between words. Documents are met in proportion to their length: `random` draws where the
    first stretch begins, otherwise rows follow each other. Ids at a document's edges are then read from half as often
    to half as often again as those in its midst, as stretches begin and end there instead of beyond. Raises UsageError
    with fewer than two documents with text.
    """
    read = _read_documents(documents, encoder, field, count)
    room = max(2, length - encoder.around.count(two=True))
    places: Any = [
        {"id": f"{name}@{start}", "document": d, "start": start}
        for d, (name, ids) in enumerate(zip(read.names, read.ids, strict=True))
        for start in range(0, max(1, len(ids) - room // 2), room)
    ]

    def row(place: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        document, size = place["document"], int(rng.integers(max(1, room // 4), max(2, room * 3 // 4)))
        follows, start = False, place["start"]
        if random:
            follows = bool(rng.random() < 0.5)
            start = read.draw(document, room if follows else size, rng)
        first = read.stretch(document, start, size)
        follows = (follows if random else bool(rng.random() < 0.5)) and first.stop + 1 < len(read.ids[document])
        if follows:
            other, second = document, read.stretch(document, first.stop, room - size)
        else:
            other = int(rng.integers(0, len(read.ids) - 1))
            other += other >= document
            free = max(1, len(read.ids[other]) - (room - size))
            begin = read.draw(other, room - size, rng) if random else int(rng.integers(0, free))
            second = read.stretch(other, begin, room - size)
        ids, types = pair_row(encoder, length, read.ids[document][first], read.ids[other][second])
        made = {"ids": ids, "types": types, "next": np.int32(follows)}
        if read.bytes:
            sizes = read.bytes[document][first], read.bytes[other][second]
            made["bytes"] = _arrange(encoder.around.filled(0), length, *sizes, fill=0)[0]
        return made

    return Dataset(places, row)


@dataclasses.dataclass(frozen=True)
class _Documents:
    """Documents that have two ids at least."""

    names: list[str]  # of their records
    ids: list[np.ndarray]  # int32 [T] of each
    starts: list[np.ndarray]  # where its words begin
    bytes: list[np.ndarray]  # of each id, where they are counted

    def stretch(self, document: int, wanted: int, size: int) -> slice:
        """Find at most `size` ids of whole words, from the first word that starts at `wanted` or after."""
        ids, at = self.ids[document], self.starts[document]
        begin = int(at[min(np.searchsorted(at, wanted), len(at) - 1)])
        end = min(begin + size, len(ids))
        if end < len(ids):
            whole = int(at[np.searchsorted(at, end, side="right") - 1])
            end = whole if whole > begin else end  # a word longer than the stretch is cut after all
        return slice(begin, end)

    def draw(self, document: int, size: int, rng: np.random.Generator) -> int:
        """Draw the start of `size` ids, so that the edges of the document get their share."""
        last = max(0, len(self.ids[document]) - size)
        return min(max(0, int(rng.integers(-(size // 2), last + size - size // 2))), last)


def _read_documents(documents: Source, encoder: Encoder, field: str, count: bool) -> _Documents:
    refuse_weights(documents, "pairs of sentences")
    read = _Documents([], [], [], [])
    for index in range(len(documents)):
        text = text_of(documents[index], (field,))
        ids, sizes = encoder.counted(text) if count else (encoder.encode(text), None)
        if len(ids) > 1:
            read.names.append(documents[index]["id"])
            read.ids.append(ids)
            read.starts.append(np.flatnonzero(np.diff(encoder.words(ids), prepend=-1)))
            if sizes is not None:
                read.bytes.append(sizes)
    if len(read.ids) < 2:
        raise UsageError(f"next-sentence prediction needs two documents with text or more, found {len(read.ids)}")
    return read
