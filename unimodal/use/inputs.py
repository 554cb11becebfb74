"""Inputs from a user: files, folders, globs, texts, lines of standard input, sources → records, read one by one."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.answers import IMAGE, SOUND, TEXT
from unimodal.data import schemes
from unimodal.data.address import parse
from unimodal.data.audio import sound_rate
from unimodal.data.blocks import images, sounds, texts
from unimodal.data.cells import KINDS
from unimodal.data.sources import open_source
from unimodal.errors import UsageError

Record = Mapping[str, Any]
OBVIOUS = {IMAGE: images.OBVIOUS, SOUND: sounds.OBVIOUS, TEXT: texts.OBVIOUS}
TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
LARGEST = 512 * 2**20  # bytes of a file that is read at all


@dataclass(frozen=True)
class Entry:
    """One input."""

    id: str  # the name that its answer bears
    read: Callable[[], Record]  # gives its record, or raises UsageError or OSError
    reads: tuple[str, ...] = ()  # the modalities that it may be, if they are known before it is read


def as_entries(inputs: Any, split: str = "validation") -> Iterator[Entry]:
    """Inputs of the library: paths, texts, records, pictures, or several."""
    several = inputs if isinstance(inputs, list | tuple) else [inputs]
    for i, value in enumerate(several):
        if isinstance(value, str | Path):
            yield from entries([str(value)], split)
        elif isinstance(value, Mapping):
            yield Entry(str(value.get("id", i)), partial(_with_id, value, str(i)), modalities(value))
        else:  # pixels, or a picture of Pillow
            yield Entry(str(i), partial(_picture, value, str(i)), (IMAGE,))


def entries(words: Iterable[str], split: str = "validation") -> Iterator[Entry]:
    """Words of a command line. Raises UsageError for a source, folder or glob that holds nothing."""
    for word in words:
        scheme, colon, _ = word.partition(":")
        if word == "-":
            yield from _lines(sys.stdin.buffer)
        elif not word.strip():  # and not the folder that an empty path is
            yield Entry(word, partial(_text, word), (TEXT,))
        elif colon and scheme in schemes.names():
            yield from _of_source(word, split)
        elif _is_there(word, Path.is_dir):
            yield from _of_folder(Path(word))
        elif _is_glob(word) and not _is_file(word):
            paths = sorted(path for path in glob.glob(word, recursive=True) if Path(path).is_file())
            if not paths:
                raise UsageError(f"no file is called {word}")
            yield from map(of_file, map(Path, paths))
        elif _is_file(word) or _looks_like_file(word):
            path = Path(word)
            yield from _of_table(path) if path.suffix.lower() in TABLES and path.exists() else (of_file(path),)
        else:
            yield Entry(word if len(word) <= 80 else f"{word[:79]}…", partial(_text, word), (TEXT,))


def of_file(path: Path) -> Entry:
    """One file, by its ending."""
    kind = kind_of(path)
    return Entry(str(path), partial(read_file, path), () if kind is None else (kind,))


def joined(entries: Sequence[Entry]) -> Entry:
    """Several inputs, of one known modality each, as one: for an answer that reads them together, as "image+text"."""

    def read() -> Record:
        return {name: value for entry in entries for name, value in entry.read().items()}

    together = "+".join(sorted((entry.reads[0] for entry in entries), key=list(OBVIOUS).index))
    return Entry(" and ".join(entry.id for entry in entries), read, (together,))


def kind_of(path: Path) -> str | None:
    """The modality that a file's ending says; None for one that says none."""
    ending = path.suffix.lower()
    if ending in KINDS["image"]:
        return IMAGE
    if ending in KINDS["audio"]:
        return SOUND
    return TEXT if ending in (".txt", ".md") else None


def read_file(path: Path) -> Record:
    """A picture, a recording or a text as a record. Raises UsageError for another kind, OSError for what is not there."""
    kind = kind_of(path)
    if kind is None:
        known = " ".join(ending for group in KINDS.values() for ending in group)
        raise UsageError(f"{path.suffix or 'a file without an ending'} is none of {known} .txt .md {' '.join(TABLES)}")
    if (size := path.stat().st_size) > LARGEST:
        raise UsageError(f"the file has {size:,} bytes, more than {LARGEST:,}")
    return record_of(kind, path.read_bytes(), str(path))


def record_of(kind: str, content: bytes, name: str) -> Record:
    """Encoded bytes of a modality as a record."""
    if not content:
        raise UsageError("the file is empty")
    if kind == IMAGE:
        return {"id": name, "image": content}
    if kind == SOUND:
        return {"id": name, "audio": content, "rate": sound_rate(content, name)}
    return {"id": name, "text": _decoded(content).strip()}


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"it is not UTF-8 text (byte {error.start})") from error


def modalities(record: Mapping[str, Any]) -> tuple[str, ...]:
    """List the modalities that the columns of a record may be."""
    return tuple(kind for kind, names in OBVIOUS.items() if any(name in record for name in names))


def _of_source(uri: str, split: str) -> Iterator[Entry]:
    """All records of a source, or the one whose number stands behind a #, as in the ids of answers."""
    uri, _, number = uri.rpartition("#") if uri.rpartition("#")[2].isdecimal() else (uri, "", "")
    source = open_source(uri, split)
    if number and int(number) >= len(source):
        raise UsageError(f"{uri} has no record {number} in {split}: there are {len(source)}, counted from 0")
    for i in [int(number)] if number else range(len(source)):
        yield Entry(f"{uri}#{i}", partial(source.__getitem__, i))


def _of_folder(folder: Path) -> Iterator[Entry]:
    everything = sorted(p for p in folder.rglob("*") if p.is_file())
    shown = [p for p in everything if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    known = [path for path in shown if kind_of(path) is not None]
    if not known:
        raise UsageError(f"{folder} has no pictures, recordings or texts")
    yield from map(of_file, known)


def _of_table(path: Path) -> Iterator[Entry]:
    """Every row of a table: jsonl, csv, tsv or Parquet."""
    ending = path.suffix.lower()[1:]
    scheme: Any = schemes.find(ending)
    source = scheme.open_split(parse(f"{ending}:{path}")[0], None)
    for i in range(len(source)):
        yield Entry(f"{path}#{i}", partial(source.__getitem__, i))


def _lines(stream: Iterable[bytes]) -> Iterator[Entry]:
    for i, line in enumerate(stream, 1):
        yield Entry(f"line {i}", partial(_line, line.rstrip(b"\r\n")), (TEXT,))


def _line(content: bytes) -> Record:
    return _text(_decoded(content))


def _text(text: str) -> Record:
    return {"id": "text", "text": text}


def _with_id(record: Mapping[str, Any], name: str) -> Record:
    return {"id": name, **record}


def _picture(value: Any, name: str) -> Record:
    if not isinstance(value, np.ndarray) and not hasattr(value, "convert"):
        raise UsageError(f"an input is a path, a text, a record or a picture, not a {type(value).__name__}")
    return {"id": name, "image": value if isinstance(value, np.ndarray) else np.asarray(value.convert("RGB"))}


def _may_be_path(word: str) -> bool:
    return len(word) < 1000 and "\0" not in word and "\n" not in word


def _is_file(word: str) -> bool:
    return _is_there(word, Path.is_file)


def _is_there(word: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return _may_be_path(word) and kind(Path(word))
    except OSError:  # a text is longer than the name of a file may be
        return False


def _is_glob(word: str) -> bool:
    """A pattern has no spaces: "what is this?" is a text."""
    return _may_be_path(word) and any(sign in word for sign in "*?[") and not any(c.isspace() for c in word)


def _looks_like_file(word: str) -> bool:
    """A name that ends like a file which is not there is a slip, not a text."""
    return _may_be_path(word) and (kind_of(Path(word)) is not None or word.endswith(TABLES)) and " " not in word
