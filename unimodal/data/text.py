"""Strings to ids, windows of ids, and BERT's masking: host-side, numpy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unimodal.data.around import bert_around
from unimodal.data.dataset import Dataset, Source
from unimodal.data.shares import Weight, parts_of
from unimodal.errors import RecordError, UsageError

Encode = Callable[[str], np.ndarray]
Counted = Callable[[str], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ByteEncoder:
    """UTF-8 bytes as ids: eight special ids first, then byte b is id b + 8. No vocabulary file, no unknown word.

    Ids 6 and 7 are spare. `encode` and `decode` are inverse for every string without lone surrogates.
    """

    PAD = 0
    MASK = 1
    BOS = 2
    EOS = 3
    SEP = 4
    CLS = 5
    first_ordinary_id = 8
    vocab_size = 264
    around = bert_around(CLS, SEP)

    def encode(self, text: str) -> np.ndarray:
        """Ids `[len(utf-8 bytes)]` int32, without BOS or EOS. Lone surrogates become "?"."""
        raw = np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8)
        return raw.astype(np.int32) + self.first_ordinary_id

    def decode(self, ids: Any) -> str:
        """The string of `ids` (any integer array or sequence, flattened); special ids are skipped.

        Bytes that are not UTF-8 (a character cut in half) become U+FFFD. Raises UsageError for an id outside
        `[0, vocab_size)`.
        """
        flat = np.asarray(ids, dtype=np.int64).reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= self.vocab_size):
            bad = int(flat[(flat < 0) | (flat >= self.vocab_size)][0])
            raise UsageError(f"id {bad} is not a byte id: expected 0 <= id < {self.vocab_size}")
        ordinary = flat[flat >= self.first_ordinary_id] - self.first_ordinary_id
        return ordinary.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    @property
    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, int32 `[vocab_size]`."""
        return (np.arange(self.vocab_size) >= self.first_ordinary_id).astype(np.int32)

    def byte_counts(self, text: str) -> np.ndarray:
        """UTF-8 bytes of `text` that each id of `encode(text)` stands for: ones."""
        return np.ones(len(text.encode("utf-8", errors="replace")), np.int32)

    def counted(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode(text)` and `byte_counts(text)`."""
        ids = self.encode(text)
        return ids, np.ones(len(ids), np.int32)

    def ordinary(self, ids: np.ndarray) -> np.ndarray:
        """Which of `ids` are text and no special, bool of the same shape."""
        return ids >= self.first_ordinary_id

    def words(self, ids: np.ndarray) -> np.ndarray:
        """The number of the word that each id belongs to, int32 `[T]`: a run of ASCII letters, digits and all non-ASCII
        bytes, with the space before it, is a word; everything else stands alone."""
        byte = ids - self.first_ordinary_id
        inside = _WORD_BYTES[np.clip(byte, 0, 255)] & self.ordinary(ids)
        return number_words(inside, inside | (byte == ord(" ")))

    def surface(self, identity: int) -> str:
        """One id alone as one character to look at: itself where it is printable ASCII, else a dot."""
        byte = identity - self.first_ordinary_id
        return chr(byte) if 32 <= byte < 127 else ("\n" if byte == 10 else "·")


_WORD_BYTES = np.array([chr(b).isalnum() if b < 128 else True for b in range(256)])


def number_words(joins_left: np.ndarray, joins_right: np.ndarray) -> np.ndarray:
    """Number words, int32 `[T]`, by which tokens can continue a word and which can be continued."""
    starts = np.ones(len(joins_left), dtype=bool)
    starts[1:] = ~(joins_left[1:] & joins_right[:-1])
    return np.cumsum(starts, dtype=np.int32) - 1


def fit_length(ids: np.ndarray, length: int, *, pad_id: int = 0) -> np.ndarray:
    """Cut or pad `ids` at its end to exactly `[length]` int32."""
    out = np.full(length, pad_id, dtype=np.int32)
    kept = ids[:length]
    out[: len(kept)] = kept
    return out


def window_phases(size: int, length: int) -> tuple[int, int, int]:
    """Count the windows of `length` that a document of `size` ids takes, and the lowest and highest phase of their tiling.

    At phase p, window i holds the ids i·length - p … (i + 1)·length - p - 1 that the document has. At each of the phases
    all windows have an id and each id is in one window, so it is seen once an epoch in expectation, whatever each
    window draws for itself. A document that fits into a window stays whole. Others take as many windows as hold it, if
    that leaves half of all phases, else one more.
    """
    count = max(1, -(-size // length))
    slack = count * length - size
    if count == 1 or 2 * slack >= length - 1:
        return count, 0, 0 if count == 1 else slack
    return count + 1, slack + 1, length - 1


def mask_tokens(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    vocab_size: int,
    mask_id: int,
    first_ordinary_id: int,
    rate: float = 0.15,
    maskable: np.ndarray | None = None,
    words: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask ids as BERT does (Devlin et al. 2019, section 3.1 and appendix A.1).

    `max(1, round(rate * n))` of the n maskable places are chosen without replacement. Of those, 80 % become
    `mask_id`, 10 % a random ordinary id (uniform over `[first_ordinary_id, vocab_size)`), 10 % stay as they are.

    Args:
      ids: `[T]` integer ids.
      rate: share of the maskable places to predict, in (0, 1].
      maskable: `[T]` bool; by default every ordinary id (`ids >= first_ordinary_id`).
      words: `[T]` the number of each id's word. Then whole words are chosen, in random order, as long as they do not
        exceed the same count (the authors' later "whole word masking"); the fate of each id is still its own.

    Returns:
      inputs `[T]` int32 (what the model sees), targets `[T]` int32 (the ids as they were), weights `[T]` float32
      (1 at the chosen places, else 0; all 0 only when nothing is maskable).

    Raises UsageError when `rate` is outside (0, 1] or there is no ordinary id.
    """
    if not 0.0 < rate <= 1.0:
        raise UsageError(f"mask rate must be in (0, 1], found {rate}")
    if first_ordinary_id >= vocab_size:
        raise UsageError(f"no ordinary ids: first_ordinary_id {first_ordinary_id} >= vocab_size {vocab_size}")
    targets = np.asarray(ids, dtype=np.int32)
    inputs = targets.copy()
    weights = np.zeros(targets.shape, dtype=np.float32)
    places = np.flatnonzero(targets >= first_ordinary_id if maskable is None else maskable)
    if places.size == 0:
        return inputs, targets, weights
    count = min(places.size, max(1, int(rate * places.size + 0.5)))
    chosen = rng.permutation(places)[:count] if words is None else _whole_words(places, words[places], count, rng)
    count = chosen.size
    weights[chosen] = 1.0
    # One uniform per chosen place decides its fate, so the three shares are exact in expectation at any length.
    fate = rng.random(count)
    replacements = rng.integers(first_ordinary_id, vocab_size, count, dtype=np.int32)
    inputs[chosen] = np.where(fate < 0.8, np.int32(mask_id), np.where(fate < 0.9, replacements, inputs[chosen]))
    return inputs, targets, weights


def _whole_words(places: np.ndarray, words: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose places of whole words, at most `count` in all. If no word is that short, take the first word drawn."""
    names, sizes = np.unique(words, return_counts=True)
    order, taken, room = rng.permutation(len(names)), [], count
    for word in order:
        if sizes[word] <= room:
            taken.append(names[word])
            room -= sizes[word]
    return places[np.isin(words, taken or [names[order[0]]])]


@dataclasses.dataclass(frozen=True)
class _Texts:
    source: Source
    fields: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        return record | {"text": text_of(record, self.fields)}


def text_of(record: dict[str, Any], fields: Sequence[str]) -> str:
    """Join the texts of some fields of a record. A list of words is one text.

    Raises UsageError for a field that the record lacks, RecordError for one that is no text.
    """
    parts = []
    for field in fields:
        if field not in record:
            raise UsageError(f"record {record['id']!r} has no field {field!r}; it has {', '.join(sorted(record))}")
        value = record[field]
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(w, str) for w in value)):
            raise RecordError(f"field {field!r} of record {record['id']!r} is no text, but {type(value).__name__}")
        parts.append(value if isinstance(value, str) else ", ".join(value))
    return ": ".join(part for part in parts if part)


def with_text(source: Source, fields: Sequence[str]) -> Source:
    """Add `text` to a source, joined from some of its fields (see `text_of`)."""
    return source if tuple(fields) == ("text",) else _Texts(source, tuple(fields))


def all_ids(documents: Source, encode: Encode, *, field: str = "text") -> np.ndarray:
    """The ids of all documents, one after another, `[N]` int32: what a count-based baseline reads. With an encoder's
    `byte_counts` for `encode`: the bytes of each."""
    return np.concatenate([encode(documents[i][field]) for i in range(len(documents))])


@dataclasses.dataclass(frozen=True)
class _Windows:
    """A source of places in documents, whose rows hold ids, and bytes if they are counted."""

    names: tuple[str, ...]
    documents: tuple[dict[str, np.ndarray], ...]
    places: tuple[tuple[int, int], ...]  # (document, start), or (document, window) where the transform draws the start
    random: bool
    parts: tuple[tuple[int, float | Weight], ...] = ()  # windows and weight of each of several joined sources

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        document, where = self.places[index]
        return {
            "id": f"{self.names[document]}{'#' if self.random else '@'}{where}",
            "rows": self.documents[document],
            "where": where,
        }


def _windows_of(documents: Source, ends: list[int]) -> tuple[tuple[int, float | Weight], ...]:
    """The parts of a source of documents as parts of its windows. Raises UsageError for one without any."""
    found, first = [], 0
    for count, weight in parts_of(documents):
        windows, first = ends[first + count] - ends[first], first + count
        if not windows:
            raise UsageError("one of the joined sources has no text: leave it out")
        found.append((windows, weight))
    return tuple(found)


def text_windows(
    documents: Source,
    encode: Encode,
    length: int,
    *,
    random: bool,
    counted: Counted | None = None,
    field: str = "text",
    pad_id: int = 0,
) -> Dataset:
    """Windows of `length` ids over all documents: a Dataset whose examples are `{"ids": [length] int32}`.

    `random=False` (validation): non-overlapping windows that cover every id once; the last of each document is padded.
    `random=True` (training): every id of every document is seen once an epoch in expectation. Windows draw their phase
    anew at each visit (see `window_phases`), so the first and the last of a document are mostly shorter than `length`;
    like documents shorter than a window, they begin at the row's first place and are padded at its end.

    counted: text → its ids and the bytes of each (an encoder's `counted`), instead of `encode`; examples then have `bytes`
    `[length]` too, 0 for padding. Every document is encoded once, here, and its ids stay in memory. Ids of records: "DOCUMENT@START" or
    "DOCUMENT#WINDOW". Raises UsageError when `length` < 1, `field` is missing, or all documents are empty.
    """
    if length < 1:
        raise UsageError(f"window length must be at least 1, found {length}")
    names: list[str] = []
    encoded: list[dict[str, np.ndarray]] = []
    places: list[tuple[int, int]] = []
    ends = [0]  # windows so far, after each document
    for index in range(len(documents)):
        ends.append(ends[-1])
        record = documents[index]
        if field not in record:
            raise UsageError(f"record {record['id']!r} has no field {field!r}; it has {sorted(record)}")
        ids, sizes = (encode(record[field]), None) if counted is None else counted(record[field])
        ids = np.asarray(ids, dtype=np.int32)
        if ids.size == 0:
            continue
        document = len(names)
        names.append(record["id"])
        encoded.append({"ids": ids} | ({} if sizes is None else {"bytes": sizes}))
        starts = range(window_phases(ids.size, length)[0]) if random else range(0, ids.size, length)
        places += [(document, start) for start in starts]
        ends[-1] = len(places)
    if not places:
        raise UsageError("no text: every document is empty")

    def window(record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        rows, start = record["rows"], record["where"]
        if random:
            _, lowest, highest = window_phases(len(rows["ids"]), length)
            start = start * length - (int(rng.integers(lowest, highest + 1)) if highest else 0)
        place, fill = slice(max(0, start), start + length), {"ids": pad_id, "bytes": 0}
        return {name: fit_length(row[place], length, pad_id=fill[name]) for name, row in rows.items()}

    return Dataset(_Windows(tuple(names), tuple(encoded), tuple(places), random, _windows_of(documents, ends)), window)
