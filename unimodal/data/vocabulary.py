"""Vocabularies of pieces of words, read from their files by the libraries that know them."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.data.around import NO_ID, Around, bert_around
from unimodal.data.byte_counts import as_unicode, share_bytes
from unimodal.data.sentencepieces import open_sentencepiece, spans
from unimodal.data.subwords import import_tokenizers
from unimodal.data.text import number_words
from unimodal.data.tokenizer_files import read_settings, read_tokenizer, special_roles
from unimodal.errors import UsageError

# How vocabularies in the wild spell the specials.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "MASK": ("[MASK]", "<mask>"),
    "BOS": ("[BOS]", "<s>", "<bos>", "<|startoftext|>", "<|begin_of_text|>", "<|endoftext|>"),
    "EOS": ("[EOS]", "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    "SEP": ("[SEP]", "</s>"),
    "CLS": ("[CLS]", "<s>"),
}
_MOST = 1 << 24
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_NEVER_TEXT = ("[PAD]", "[UNK]", "<pad>", "<unk>", "<|pad|>")


Spans = Callable[[str], tuple[Sequence[int], Sequence[int]]]
"""A text → its ids, and the character at which each ends."""


@dataclasses.dataclass(frozen=True, eq=False)
class VocabularyEncoder:
    """An `Encoder` around `pieces` and a library's functions, made by `read_vocabulary`. texts: which ids are text.

    Rows are padded with `NO_ID`, so that no id of the vocabulary means padding. A special that is spelt out in a text
    is text; specials come in by their ids only.

    `byte_lengths` is what an id stands for wherever it stands: exact for byte-level vocabularies. In others it is near:
    a piece with a mark of a word's start counts a space, at the start of a text as well; in WordPiece, a piece that
    begins with a letter or digit counts a space before it; what normalisation removed counts nothing. `byte_counts`
    knows the text, and is exact.
    """

    pieces: tuple[str, ...]
    to_ids: Callable[[str], Sequence[int]]
    to_spans: Spans
    to_text: Callable[[Sequence[int]], str]
    specials: frozenset[int]
    MASK: int
    BOS: int
    EOS: int
    SEP: int
    CLS: int
    around: Around
    surfaces: tuple[bytes, ...]
    byte_lengths: np.ndarray
    joins_left: np.ndarray
    joins_right: np.ndarray
    texts: np.ndarray
    first_ordinary_id: int
    PAD = NO_ID

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> np.ndarray:
        """Raises UsageError for a character that the vocabulary lacks, if it has no id for the unknown either."""
        return np.asarray(self._call(self.to_ids, text), dtype=np.int32)

    def byte_counts(self, text: str) -> np.ndarray:
        return self.counted(text)[1]

    def counted(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids, ends = (np.asarray(part, dtype=np.int64) for part in self._call(self.to_spans, text))
        counts = share_bytes(as_unicode(text), ends, self.byte_lengths[ids])
        # The unknown says of none of its bytes what they are.
        return ids.astype(np.int32), np.where(self.texts[ids], counts, 0).astype(np.int32)

    def _call(self, function: Callable[[str], Any], text: str) -> Any:
        try:
            return function(as_unicode(text))
        except Exception as error:  # the libraries raise bare Exceptions
            why = " ".join(str(error).split())
            raise UsageError(f"the vocabulary cannot encode {text[:40]!r}: {why:.120}") from error

    def decode(self, ids: Any) -> str:
        """Raises UsageError for an id that is neither in the vocabulary nor PAD."""
        flat = np.asarray(ids, dtype=np.int64).reshape(-1)
        flat = flat[flat != self.PAD]
        if flat.size and (flat.min() < 0 or flat.max() >= self.vocab_size):
            bad = int(flat[(flat < 0) | (flat >= self.vocab_size)][0])
            raise UsageError(f"id {bad} is not in the vocabulary: expected 0 <= id < {self.vocab_size}")
        return self.to_text([int(i) for i in flat if self.texts[i]])

    def ordinary(self, ids: np.ndarray) -> np.ndarray:
        return np.where(ids >= 0, self.texts[np.maximum(ids, 0)], False)

    def words(self, ids: np.ndarray) -> np.ndarray:
        real, safe = self.ordinary(ids), np.maximum(ids, 0)
        return number_words(self.joins_left[safe] & real, self.joins_right[safe] & real)

    def surface(self, identity: int) -> str:
        if not 0 <= identity < self.vocab_size:
            return "·"
        return self.surfaces[identity].decode("utf-8", errors="replace") or "·"


def read_vocabulary(path: Path) -> VocabularyEncoder:
    """The encoder of a file (see `unimodal.data.encoders`).

    Raises UsageError for a file that cannot be read, one that lacks another beside it, and a missing optional package.
    """
    try:
        if path.suffix == ".model":
            return _sentencepiece(path)
        files = read_tokenizer(path)
        return from_tokenizers(files.tokenizer, files.roles)
    except UsageError:
        raise
    except Exception as error:  # the libraries raise bare Exceptions of many texts
        raise UsageError(f"{path} is no vocabulary that can be read: {' '.join(str(error).split())[:160]}") from error


def from_tokenizers(made: Any, roles: Mapping[str, str]) -> VocabularyEncoder:
    """An encoder from a `tokenizers.Tokenizer`, whose truncation and padding are switched off. roles: its special
    tokens by role, where its files say."""
    made.no_padding()
    made.no_truncation()
    numbered = made.get_vocab()
    last = max(numbered.values(), default=-1)
    if last >= _MOST:
        raise UsageError(f"a vocabulary numbers its pieces up to {last}; more than {_MOST} ids cannot be read")
    pieces = [""] * (last + 1)  # gaps in the numbering are ids that nothing is encoded as
    for piece, i in numbered.items():
        pieces[i] = piece
    added = {i for i, token in made.get_added_tokens_decoder().items() if token.special}
    description = json.loads(made.to_str())
    surface, joins = _surfaces(pieces, description)
    known, specials = _specials(pieces, roles, added)
    plain = _without_specials(description, {pieces[i] for i in specials})

    def to_spans(text: str) -> tuple[Sequence[int], Sequence[int]]:
        found = plain.encode(text, add_special_tokens=False)
        return found.ids, [end for _, end in found.offsets]

    return _encoder(
        pieces,
        lambda text: plain.encode(text, add_special_tokens=False).ids,
        to_spans,
        lambda ids: made.decode(ids, skip_special_tokens=False),
        known,
        specials,
        around_of(made, next((p for i, p in enumerate(pieces) if p and i not in specials), "a")),
        surface,
        joins,
    )


def _surfaces(pieces: Sequence[str], description: Any) -> tuple[list[bytes], tuple[np.ndarray, np.ndarray]]:
    """The bytes that each piece stands for, and which pieces go on a word at their left and at their right."""
    model = description["model"]
    ending = model.get("end_of_word_suffix") or ""
    if '"ByteLevel"' in json.dumps([description.get("pre_tokenizer"), description.get("decoder")]):
        surface = [_unbyte(piece.removesuffix(ending)) + b" " * _ends(piece, ending) for piece in pieces]
    elif model.get("type") == "WordPiece":
        prefix = model.get("continuing_subword_prefix", "##")
        left = np.array([piece.startswith(prefix) and piece != prefix for piece in pieces])
        # Punctuation mostly stands without a space before it.
        spaces = [" " * (not go_on and piece[:1].isalnum()) for piece, go_on in zip(pieces, left, strict=True)]
        surface = [
            (space + (piece.removeprefix(prefix) if go_on else piece)).encode()
            for space, piece, go_on in zip(spaces, pieces, left, strict=True)
        ]
        return surface, (left, np.ones(len(pieces), dtype=bool))
    else:
        surface = [
            bytes([int(piece[3:5], 16)])
            if model.get("byte_fallback") and _BYTE.fullmatch(piece)
            else piece.removesuffix(ending).replace("\u2581", " ").encode() + b" " * _ends(piece, ending)
            for piece in pieces
        ]
    return surface, _joins(surface)


def _ends(piece: str, ending: str) -> bool:
    return bool(ending) and piece.endswith(ending)


def _without_specials(description: Any, specials: set[str]) -> Any:
    """The same tokenizer with its specials under names that no text holds, so that a text's "[MASK]" is only text."""
    model = description["model"]
    unknown, pairs = model.get("unk_token"), isinstance(model["vocab"], list)
    hidden = {content: "\uffff" * 101 + content for content in specials}  # beyond WordPiece's longest word
    if pairs:
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        # The model itself looks for its unknown by name; and merges never make a special that they do not name.
        kept = {unknown, *("".join(m) if isinstance(m, list) else m.replace(" ", "") for m in model.get("merges", ()))}
        model["vocab"] = {p if p in kept else hidden.get(p, p): i for p, i in model["vocab"].items()}
    # An unknown that the model holds keeps its id without being an added token.
    added = [
        t for t in description["added_tokens"] if pairs or t["content"] != unknown or unknown not in model["vocab"]
    ]
    description["added_tokens"] = [
        token | {"content": hidden.get(token["content"], token["content"])} for token in added
    ]
    return import_tokenizers().Tokenizer.from_str(json.dumps(description | {"post_processor": None}))


def around_of(made: Any, word: str) -> Around | None:
    """Read what the tokenizer's post-processing puts around texts; None if it puts nothing."""
    pair = made.encode(word, word)
    owner = pair.sequence_ids  # None of specials
    if None not in owner or 0 not in owner or 1 not in owner:
        return None
    first, second = owner.index(0), owner.index(1)
    end, stop = len(owner) - owner[::-1].index(0), len(owner) - owner[::-1].index(1)
    ids, types = pair.ids, pair.type_ids
    return Around(
        tuple(ids[:first]), tuple(ids[end:second]), tuple(ids[stop:]), tuple(types[end:second]), types[second]
    )


def _specials(
    pieces: Sequence[str], roles: Mapping[str, str], added: set[int]
) -> tuple[dict[str, int], frozenset[int]]:
    """The ids of the specials by name, as the files have them or as vocabularies spell them, and all that are no text."""
    place = {piece: i for i, piece in enumerate(pieces) if piece}
    ways = {name: (roles.get(name.lower(), ""), *spelt) for name, spelt in SPELLINGS.items()}
    known = {name: next((place[s] for s in spelt if s in place), NO_ID) for name, spelt in ways.items()}
    never = {place[s] for s in (*_NEVER_TEXT, *roles.values()) if s in place}
    return known, frozenset({i for i in known.values() if i != NO_ID} | never | added)


def _encoder(
    pieces: Sequence[str],
    to_ids: Callable[[str], Sequence[int]],
    to_spans: Spans,
    to_text: Callable[[Sequence[int]], str],
    known: Mapping[str, int],
    specials: frozenset[int],
    around: Around | None,
    surface: Sequence[bytes],
    joins: tuple[np.ndarray, np.ndarray],
) -> VocabularyEncoder:
    return VocabularyEncoder(
        tuple(pieces),
        to_ids,
        to_spans,
        to_text,
        specials,
        **known,
        around=around or bert_around(known["CLS"], known["SEP"]),
        surfaces=tuple(surface),
        byte_lengths=np.array([0 if i in specials else len(p) for i, p in enumerate(surface)], dtype=np.int32),
        joins_left=joins[0],
        joins_right=joins[1],
        texts=np.array([i not in specials for i in range(len(pieces))]),
        # Specials at the end, as in GPT-2, are few among very many.
        first_ordinary_id=max((i for i in specials if i < len(pieces) // 2), default=-1) + 1,
    )


def _joins(surface: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    left = np.array([bool(piece) and _in_word(piece[0]) for piece in surface])
    right = np.array([bool(piece) and (_in_word(piece[-1]) or piece == b" ") for piece in surface])
    return left, right


def _in_word(byte: int) -> bool:
    return byte >= 128 or chr(byte).isalnum()


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level BPE writes bytes as (Radford 2019, `encoder.py`)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


def _unbyte(piece: str) -> bytes:
    alphabet = _byte_alphabet()
    if all(character in alphabet for character in piece):
        return bytes(alphabet[character] for character in piece)
    return piece.encode()


def _sentencepiece(path: Path) -> VocabularyEncoder:
    roles = special_roles(read_settings(path.parent))
    named = {*roles.values(), *_NEVER_TEXT, *(spelt for ways in SPELLINGS.values() for spelt in ways)}
    model = open_sentencepiece(path, named)
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    added = {i for i in range(len(model)) if model.is_control(i) or model.is_unknown(i)}
    surface = [
        bytes([int(piece[3:5], 16)]) if model.is_byte(i) else piece.replace("\u2581", " ").encode()
        for i, piece in enumerate(pieces)
    ]
    known, specials = _specials(pieces, roles, added)
    calls = model.encode, functools.partial(spans, model), model.decode
    return _encoder(pieces, *calls, known, specials, None, surface, _joins(surface))
