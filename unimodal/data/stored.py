"""Decoded pictures and sounds on disk, beside those in memory: what a run decodes, the next one reads.

An array is found by a hash of the encoded bytes and of what was done with them, so a file that changes is never found as it
was. Each lies in a .npy file of its own with a checksum behind it, written elsewhere and renamed: whole or not there, whoever
else writes, or is killed. Nothing is unpickled.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import logging
import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import soundfile

from unimodal.data.line_index import cache_folder

logger = logging.getLogger(__name__)

_DECODERS = f"1 {PIL.__version__} {soundfile.__version__}"  # another one may give other bits
_IDLE = 24 * 3600.0  # seconds after which an array that nobody read gives its room to others
_ABANDONED = 3600.0  # seconds after which an unfinished file is a killed writer's
_LOOK_AGAIN = 512  # arrays written at least, before what other processes wrote is counted


class Store:
    """Arrays by key in a folder of at most `size` bytes; 0: none are kept, and none found."""

    def __init__(self) -> None:
        self.size = 0
        self._folder: Path | None = None
        self._lock, self._count = threading.Lock(), itertools.count()
        self._used, self._written, self._full = 0, 0, False
        self._since = 0  # bytes written since the last look
        self._due = float(_LOOK_AGAIN)  # arrays to be written until the next
        self._idle: collections.deque[tuple[Path, int]] = collections.deque()

    def limit(self, size: int) -> None:
        """Keep so many bytes, all that the folder holds counted, under `decoded` beside the indexes."""
        with self._lock:
            self.size, self._full = size, False
            folder = self._folder = cache_folder().parent / "decoded" if size else None
        if folder is not None:
            self._look(folder)

    def find(self, data: bytes, what: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """`decode()`, or what it gave for the same bytes before. what: all else that the result depends on."""
        if self._folder is None:
            return decode()
        digest = hashlib.blake2b(f"{_DECODERS} {what} ".encode(), digest_size=20)
        digest.update(data)
        name = digest.hexdigest()
        path = self._folder / name[:2] / f"{name}.npy"
        found = _read(path)
        if found is None:
            found = decode()
            self._write(path, found)
        return found

    def _write(self, path: Path, array: np.ndarray) -> None:
        if self._full or not self._take(array.nbytes + 256):
            return
        partial = path.with_name(f"{path.stem}.{os.getpid()}-{next(self._count)}.partial")
        with contextlib.suppress(OSError):  # a full disk costs speed, and no more
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.write(struct.pack("<I", zlib.crc32(np.ascontiguousarray(array).data)))
            os.replace(partial, path)

    def _take(self, size: int) -> bool:
        with self._lock:
            self._written += 1
            folder = self._folder if self._written >= self._due else None
            if folder is not None:
                self._due = math.inf  # one thread looks, while others go on writing
        if folder is not None:
            self._look(folder)
        with self._lock:
            while self._used + size > self.size and self._idle:
                path, freed = self._idle.popleft()
                with contextlib.suppress(OSError):
                    path.unlink()
                self._used -= freed
            if self._used + size > self.size:
                self._full = True
                logger.warning("decoded_cache is full (%.2g GiB): more is decoded anew each time", self.size / 2**30)
                return False
            self._used += size
            self._since += size
            return True

    def _look(self, folder: Path) -> None:
        """Count what is there, whoever wrote it, and which of it nobody has read for long.

        The next look is due when an eighth as many arrays have been written as are there, or as there is room for: so looking
        stays a fixed share of the work, and several processes do not write far beyond the limit.
        """
        with self._lock:
            self._since = 0
        now, used, idle, count = time.time(), 0, [], 0
        for path in folder.glob("*/*"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                if path.suffix == ".partial" and now - stat.st_mtime > _ABANDONED:
                    path.unlink()
                    continue
                used, count = used + stat.st_size, count + 1
                if path.suffix == ".npy" and now - stat.st_mtime > _IDLE:
                    idle.append((stat.st_mtime, path, stat.st_size))
        with self._lock:
            self._idle = collections.deque((path, size) for _, path, size in sorted(idle))
            # What was written meanwhile may have been counted or not.
            self._used = used + self._since
            room = self.size - self._used + sum(size for _, size in self._idle)
            self._written, self._due = 0, max(_LOOK_AGAIN, count * min(1.0, room / max(1, used)) / 8)


def _read(path: Path) -> np.ndarray | None:
    """The array of a file; None where there is none, or it is not whole."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            whole = file.read() == struct.pack("<I", zlib.crc32(array.data))
            if time.time() - os.fstat(file.fileno()).st_mtime > _IDLE / 2:
                os.utime(path)  # it is in use
    except (OSError, ValueError, EOFError):
        return None
    return array if whole else None


STORE = Store()
"""Of this process."""
