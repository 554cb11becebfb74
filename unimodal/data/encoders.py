"""Encoders beyond bytes: vocabularies of pieces of words, read from the files that others write.

| file | what |
|---|---|
| `tokenizer.json` | anything that the `tokenizers` library can say: WordPiece, byte-level BPE, Unigram |
| `vocab.txt` | WordPiece of the BERT family |
| `vocab.json` + `merges.txt`, `encoder.json` + `vocab.bpe` | byte-level BPE of GPT-2, RoBERTa and CLIP |
| `*.model` | SentencePiece, where the package `sentencepiece` is installed |

The vocabulary of a checkpoint is read as its preprocessing reads it (`unimodal.data.tokenizer_files`), but for one thing: a
special token spelt out in a text ("a [MASK] b") is text here.

`python -m unimodal.data.train_encoder` makes a `tokenizer.json` from a corpus of one's own.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unimodal.data.around import NO_ID, Around
from unimodal.data.spec import ArraySpec
from unimodal.data.text import ByteEncoder
from unimodal.data.vocabulary import SPELLINGS, VocabularyEncoder, read_vocabulary
from unimodal.errors import UsageError

# Names that a vocabulary has in a folder, and of what may stand beside it and says how it is used.
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "vocab.bpe",
)
FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "encoder.json", "tokenizer.model", "spiece.model")


class Encoder(Protocol):
    """Strings to ids and back. `PAD` fills up rows; a special that the vocabulary lacks is `NO_ID`.

    `first_ordinary_id … vocab_size - 1` is the range that random replacements are drawn from.
    """

    @property
    def PAD(self) -> int: ...
    @property
    def MASK(self) -> int: ...
    @property
    def BOS(self) -> int: ...
    @property
    def EOS(self) -> int: ...
    @property
    def SEP(self) -> int: ...
    @property
    def CLS(self) -> int: ...
    @property
    def around(self) -> Around:
        """The specials that go around one text, and around and between two."""
        ...

    @property
    def first_ordinary_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes of text that each id stands for by itself, int32 `[vocab_size]`; of a whole text see `byte_counts`."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """Ids `[T]` int32, without any special, whatever the text spells."""
        ...

    def byte_counts(self, text: str) -> np.ndarray:
        """UTF-8 bytes of `text` that each id of `encode(text)` stands for, int32 `[T]`.

        They sum to `len(text.encode())`: bytes of the text as it was, before lower case, spaces or accents went. Two
        things count nothing: what became the unknown id, and a text that has no id at all (spaces alone, in WordPiece).
        """
        ...

    def counted(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode(text)` and `byte_counts(text)` in one go, which takes little longer than one of them."""
        ...

    def decode(self, ids: Any) -> str:
        """The text of ids; specials and PAD are skipped."""
        ...

    def ordinary(self, ids: np.ndarray) -> np.ndarray:
        """Mark the ids that are text and not special, bool of the same shape."""
        ...

    def words(self, ids: np.ndarray) -> np.ndarray:
        """The number of the word that each id belongs to, int32 `[T]`."""
        ...

    def surface(self, identity: int) -> str:
        """One id alone as something to look at, never empty."""
        ...


def pad_id(spec: str) -> int:
    """The PAD of `open_encoder(spec)`, known without opening anything."""
    return ByteEncoder.PAD if spec == "bytes" else VocabularyEncoder.PAD


def ids_spec(spec: str, length: int, vocabulary: int) -> ArraySpec:
    """Describe rows of `length` ids of `open_encoder(spec)` without opening it."""
    if spec == "bytes":
        return ArraySpec((length,), np.int32, ByteEncoder.first_ordinary_id, ByteEncoder.vocab_size)
    return ArraySpec((length,), np.int32, 0, vocabulary)


def encoder_for(spec: str, vocabulary: int, *needs: str) -> Encoder:
    """`open_encoder(spec)`, whose ids fit an embedding table of `vocabulary` rows and which has the specials `needs`.

    Raises UsageError where they do not, or it lacks one.
    """
    encoder = open_encoder(spec)
    if encoder.vocab_size > vocabulary:
        raise UsageError(
            f"encoder {spec!r} has {encoder.vocab_size} ids, but its tokenizer's table has vocabulary={vocabulary} rows; "
            f"set the tokenizer's vocabulary to {encoder.vocab_size}"
        )
    if missing := [name for name in needs if getattr(encoder, name) == NO_ID]:
        raise UsageError(f"encoder {spec!r} has no {missing[0]} token, as {' or '.join(SPELLINGS[missing[0]])}")
    return encoder


def open_encoder(spec: str) -> Encoder:
    """ "bytes", or the path of a vocabulary's file (see the module's table) or of a folder that holds one.

    The same file is read once. Raises UsageError for a path that is not there, a file that cannot be read, and a
    missing optional package.
    """
    if spec == "bytes":
        return ByteEncoder()
    path = _vocabulary(spec)
    return _read(path, path.stat().st_mtime_ns)


def encoder_files(spec: str) -> list[Path]:
    """The files that `open_encoder(spec)` reads, or may read, the vocabulary first; none for bytes.

    Raises UsageError for a path that is not there.
    """
    if spec == "bytes":
        return []
    path = _vocabulary(spec)
    beside = () if path.suffix == ".model" else (path.with_name(name) for name in (*FILES, *BESIDE))
    return [path, *(file for file in beside if file != path and file.is_file())]


def _vocabulary(spec: str) -> Path:
    """The vocabulary's own file, of its path or of the folder that holds it."""
    path = Path(spec).expanduser()
    if path.is_dir():
        found = next((path / name for name in FILES if (path / name).is_file()), None)
        if found is None:
            raise UsageError(f"no vocabulary in {path}: expected one of {', '.join(FILES)}")
        path = found
    if not path.is_file():
        raise UsageError(
            f"no encoder {spec!r}: expected 'bytes' or the path of a vocabulary; "
            f"python -m unimodal.data.train_encoder --out={spec} would make one"
        )
    return path


@functools.lru_cache(maxsize=8)
def _read(path: Path, _written: int) -> Encoder:
    return read_vocabulary(path)
