"""Vocabularies of pieces of words, read from their files by the libraries that know them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.data.subwords import byte_level, import_tokenizers, read_pieces, word_piece
from unimodal.data.text import number_words
from unimodal.errors import UsageError

NO_ID = -1
"""Stands for a special that a vocabulary does not have, and fills up rows of ids from such a vocabulary."""

# How vocabularies in the wild spell the specials.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "MASK": ("[MASK]", "<mask>"),
    "BOS": ("[BOS]", "<s>", "<bos>", "<|startoftext|>", "<|begin_of_text|>", "<|endoftext|>"),
    "EOS": ("[EOS]", "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    "SEP": ("[SEP]", "</s>"),
    "CLS": ("[CLS]", "<s>"),
}
_NEVER_TEXT = ("[PAD]", "[UNK]", "<pad>", "<unk>", "<|pad|>")


@dataclasses.dataclass(frozen=True, eq=False)
class VocabularyEncoder:
    """An `Encoder` around `pieces` and a library's two functions, made by `read_vocabulary`. texts: which ids are text.

    Rows are padded with `NO_ID`, so that no id of the vocabulary means padding. `byte_lengths` are exact for byte-level
    vocabularies; in WordPiece, a piece that begins with a letter or digit counts a space before it, and what
    normalisation removed counts nothing (on English prose within a percent of the truth).
    """

    pieces: tuple[str, ...]
    to_ids: Callable[[str], Sequence[int]]
    to_text: Callable[[Sequence[int]], str]
    specials: frozenset[int]
    MASK: int
    BOS: int
    EOS: int
    SEP: int
    CLS: int
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
        return np.asarray(self.to_ids(text), dtype=np.int32)

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
        return from_tokenizers(_open_tokenizers(path))
    except UsageError:
        raise
    except Exception as error:  # the libraries raise bare Exceptions of many texts
        raise UsageError(f"{path} is no vocabulary that can be read: {' '.join(str(error).split())[:160]}") from error


def _open_tokenizers(path: Path) -> Any:
    library = import_tokenizers()
    if path.suffix == ".txt":
        pieces = read_pieces(path)
        made = word_piece(library.models.WordPiece(pieces, unk_token="[UNK]"), lowercase=_lower_case(path, pieces))
        made.add_special_tokens([p for p in pieces if p in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")])
        return made
    if path.name in ("vocab.json", "encoder.json"):
        merges = path.with_name({"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}[path.name])
        if not merges.is_file():
            raise UsageError(f"{path} needs {merges.name} beside it")
        made = byte_level(library.models.BPE.from_file(str(path), str(merges)))
        made.add_special_tokens(_specials_of(path))
        return made
    return library.Tokenizer.from_file(str(path))


def _lower_case(path: Path, pieces: Iterable[str]) -> bool:
    beside = path.with_name("tokenizer_config.json")
    if beside.is_file():
        return bool(json.loads(beside.read_text(encoding="utf-8")).get("do_lower_case", True))
    return not any(piece.isalpha() and piece != piece.lower() for piece in pieces)


def _specials_of(path: Path) -> list[str]:
    known = {s for ways in SPELLINGS.values() for s in ways}
    return [piece for piece in json.loads(path.read_text(encoding="utf-8")) if piece in known]


def from_tokenizers(made: Any) -> VocabularyEncoder:
    """An encoder from a `tokenizers.Tokenizer`. Its own post-processing, truncation and padding are not used."""
    made.no_padding()
    made.no_truncation()
    pieces = [""] * made.get_vocab_size()
    for piece, i in made.get_vocab().items():
        if i >= len(pieces):
            pieces += [""] * (i + 1 - len(pieces))  # gaps in the numbering are ids that nothing is encoded as
        pieces[i] = piece
    added = {i for i, token in made.get_added_tokens_decoder().items() if token.special}
    description = json.loads(made.to_str())
    if '"ByteLevel"' in json.dumps([description.get("pre_tokenizer"), description.get("decoder")]):
        surface = [_unbyte(piece) for piece in pieces]
    elif description["model"].get("type") == "WordPiece":
        prefix = description["model"].get("continuing_subword_prefix", "##")
        left = np.array([piece.startswith(prefix) and piece != prefix for piece in pieces])
        # Punctuation mostly stands without a space before it.
        spaces = [" " * (not go_on and piece[:1].isalnum()) for piece, go_on in zip(pieces, left, strict=True)]
        surface = [
            (space + (piece.removeprefix(prefix) if go_on else piece)).encode()
            for space, piece, go_on in zip(spaces, pieces, left, strict=True)
        ]
        return _encoder(pieces, added, *_calls(made), surface, left, np.ones(len(pieces), dtype=bool))
    else:
        surface = [piece.replace("\u2581", " ").encode() for piece in pieces]
    return _encoder(pieces, added, *_calls(made), surface, *_joins(surface))


def _calls(made: Any) -> tuple[Callable[[str], Sequence[int]], Callable[[Sequence[int]], str]]:
    return (
        lambda text: made.encode(text, add_special_tokens=False).ids,
        lambda ids: made.decode(ids, skip_special_tokens=False),
    )


def _encoder(
    pieces: Sequence[str],
    added: set[int],
    to_ids: Callable[[str], Sequence[int]],
    to_text: Callable[[Sequence[int]], str],
    surface: Sequence[bytes],
    joins_left: np.ndarray,
    joins_right: np.ndarray,
) -> VocabularyEncoder:
    place = {piece: i for i, piece in enumerate(pieces) if piece}
    known = {name: next((place[s] for s in ways if s in place), NO_ID) for name, ways in SPELLINGS.items()}
    specials = frozenset(
        {i for i in known.values() if i != NO_ID} | {place[s] for s in _NEVER_TEXT if s in place} | added
    )
    lengths = np.array([0 if i in specials else len(piece) for i, piece in enumerate(surface)], dtype=np.int32)
    return VocabularyEncoder(
        tuple(pieces),
        to_ids,
        to_text,
        specials,
        **known,
        surfaces=tuple(surface),
        byte_lengths=lengths,
        joins_left=joins_left,
        joins_right=joins_right,
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
    try:
        import sentencepiece  # pyright: ignore[reportMissingImports]  # optional, and not for every platform
    except ImportError as error:
        raise UsageError(f"{path} needs the package sentencepiece: pip install sentencepiece") from error
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    added = {i for i in range(len(model)) if model.is_control(i) or model.is_unknown(i)}
    surface = [
        bytes([int(piece[3:5], 16)]) if model.is_byte(i) else piece.replace("\u2581", " ").encode()
        for i, piece in enumerate(pieces)
    ]
    return _encoder(pieces, added, model.encode, model.decode, surface, *_joins(surface))
