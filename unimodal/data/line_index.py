"""Index of where the records of a text file begin: made in one pass, kept on disk, and mapped into memory when it is next opened.

16 bytes a record. The index lies in a folder of its own ($UNIMODAL_CACHE, else ~/.cache/unimodal), under a name made of
the file's path, size and time of writing, so an index of a file that has changed is never found.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.data.files import is_remote, open_bytes, stamp
from unimodal.errors import UsageError

VERSION = 1
ROW = np.dtype([("start", "<i8"), ("length", "<u4"), ("key", "<u4")])
"""A record: its first byte, how many bytes without the line's end, and a checksum of them (CRC-32)."""
CHUNK = 1 << 22
MOST_OPEN = 1 << 28
"""Bytes of one record while the index is made."""
_BLOCK = 1 << 20  # records at a time


def cache_folder() -> Path:
    """The folder that holds indexes."""
    return Path(os.environ.get("UNIMODAL_CACHE") or "~/.cache/unimodal").expanduser() / "indexes"


def line_index(path: str, *, quoted: bool = False) -> np.ndarray:
    """The records of a file, `ROW` [N]. Blank lines are none.

    quoted: a line's end between double quotes is part of a record, as in csv.
    """
    return kept(path, f"lines{VERSION}{'q' if quoted else ''}", lambda: _read(path, quoted))


def keys_in(index: np.ndarray) -> np.ndarray:
    """The keys of an index, uint64 [N]. What is read of a mapped file does not stay in memory."""
    keys, mapped = np.empty(len(index), np.uint64), index.base
    for first in range(0, len(index), _BLOCK):
        keys[first : first + _BLOCK] = index["key"][first : first + _BLOCK]
        if isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)
    return keys


def kept(path: str, kind: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array about a file: from the cache, or made now and put there (or only made, where nothing can be written)."""
    full = path if is_remote(path) else os.path.realpath(path)
    name = hashlib.sha256(f"{full} {stamp(path)} {kind}".encode("utf-8", "surrogateescape")).hexdigest()[:40]
    target = cache_folder() / f"{name}.npy"
    with contextlib.suppress(OSError, ValueError):
        return np.load(target, mmap_mode="r", allow_pickle=False)
    made = make()
    with contextlib.suppress(OSError, ValueError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".partial", delete=False) as file:
            np.save(file, made, allow_pickle=False)
        os.replace(file.name, target)  # whole or not at all, whoever else makes the same one
        return np.load(
            target, mmap_mode="r", allow_pickle=False
        )  # which does not stay in memory, as what was made would
    return made


def _read(path: str, quoted: bool) -> np.ndarray:
    made = np.zeros(0, ROW)
    hint = "; is a double quote left open there?" if quoted else ""
    with open_bytes(path) as file:
        begin, rest, odd = 0, b"", 0  # the first byte that belongs to no record yet, and what was read from there on
        while chunk := file.read(CHUNK):
            codes = np.frombuffer(chunk, np.uint8)
            ends = np.flatnonzero(codes == 10)
            if quoted:
                quotes = np.cumsum(codes == 34, dtype=np.int64) + odd
                ends = ends[quotes[ends] % 2 == 0]
                odd = int(quotes[-1]) % 2
            if not len(ends):
                rest += chunk
                if len(rest) > MOST_OPEN:
                    raise UsageError(
                        f"{path}: what begins at byte {begin} does not end within {MOST_OPEN:,} bytes{hint}"
                    )
                continue
            data = rest + chunk
            found, taken = _rows(data, ends + len(rest), begin)
            _append(made, found)
            begin, rest = begin + taken, data[taken:]
        if rest:
            _append(made, _rows(rest, np.array([len(rest)]), begin)[0])
    return made


def _append(rows: np.ndarray, found: np.ndarray) -> None:
    """Put rows at the end, in place: an index of gigabytes is not there twice."""
    begin = len(rows)
    rows.resize(begin + len(found), refcheck=False)
    rows[begin:] = found


def _rows(data: bytes, ends: np.ndarray, begin: int) -> tuple[np.ndarray, int]:
    """The records of `data`, which begins at byte `begin` of the file, and how many bytes they take."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    view, crc = memoryview(data), zlib.crc32
    out = np.zeros(len(ends), ROW)
    out["start"], out["length"] = starts + begin, ends - starts
    pairs: Any = zip(starts.tolist(), ends.tolist(), strict=True)
    out["key"] = [crc(view[start:end]) for start, end in pairs]
    short = np.flatnonzero(out["length"] <= 2)
    blank = [i for i in short if not data[starts[i] : ends[i]].strip()]
    return np.delete(out, blank), int(ends[-1]) + 1
