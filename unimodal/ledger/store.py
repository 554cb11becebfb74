"""Tensors by their content: each part of one is a safetensors file, named by the SHA-256 of the whole file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from unimodal.errors import UsageError
from unimodal.ledger.manifest import DTYPES, NAMES, DamagedError, Entry, chunk_shapes

SUFFIX = ".safetensors"
WRITING = ".writing"  # what a file is called until it is whole
OWNER = "owner"  # the file of a folder that says whose ledger may remove tensors from it: its id, and where it was made
THREADS = 4  # hashing and writing both let other threads run
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}


class Store:
    """A folder of a disk, or of a bucket (`gs://…`, `s3://…`), with files by content. Nothing in it ever changes."""

    def __init__(self, root: str):
        self.root = root
        scheme = root.partition("://")[0] if "://" in root else ""
        try:
            self._fs, self._base = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            package = _PACKAGES.get(scheme)
            hint = f"it takes {package}: pip install {package}" if package else "give a folder, gs://… or s3://…"
            raise UsageError(f"cannot open {root}: {hint}") from error
        self.folder = Path(self._base) if self._fs.protocol in ("file", ("file", "local")) else None

    # --- writing ----------------------------------------------------------------------------------------------------

    def put_all(self, arrays: Iterable[tuple[str, np.ndarray, tuple[str, ...]]]) -> dict[str, Entry]:
        """Store arrays as they come, each (name, array, logical axes); returns their entries. A few are held at a time."""
        entries: dict[str, Any] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            waiting: list[Any] = []
            for name, array, axes in arrays:
                if array.dtype not in NAMES:
                    raise UsageError(f"{name} is of type {array.dtype}, which safetensors does not have")
                # ascontiguousarray would make a scalar one of one axis
                array = np.require(array, requirements="C")
                parts = []
                for part in _parts(array):
                    while len(waiting) >= 2 * THREADS:
                        waiting.pop(0).result()
                    parts.append(pool.submit(self._put, part))
                    waiting.append(parts[-1])
                entries[name] = NAMES[array.dtype], tuple(array.shape), parts, axes
        return {n: Entry(d, s, tuple(p.result() for p in parts), axes) for n, (d, s, parts, axes) in entries.items()}

    def put(self, name: str, array: np.ndarray, axes: tuple[str, ...] = ()) -> Entry:
        return self.put_all([(name, array, axes)])[name]

    def _put(self, part: np.ndarray) -> str:
        header, data = _header(part.dtype, part.shape), part.reshape(-1).view(np.uint8)
        chunk = _digest(header, data)
        if self.size(chunk) != len(header) + data.nbytes:
            self.write(chunk, header, data)
        return chunk

    def write(self, chunk: str, *content: Any) -> None:
        """Write a file whose name is known to be right. It appears when it is whole and on the disk."""
        if self.folder is None:
            self._fs.pipe_file(self._path(chunk), b"".join(bytes(part) for part in content))  # whole, or not at all
            return
        path = Path(self._path(chunk))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{uuid.uuid4().hex}{WRITING}")
        try:
            with partial.open("wb", buffering=0) as file:
                for part in content:
                    left = memoryview(part)
                    while left:
                        left = left[file.write(left) :]
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from error

    # --- owner ------------------------------------------------------------------------------------------------------

    def claim(self, ledger: str, path: Path) -> None:
        """Make a folder a ledger's own. Raises UsageError where it is another's, or has tensors of nobody known."""
        if self.folder is None:
            return
        self.check_not_of_another(ledger)
        if self.owner() is None and self.listed()[0]:
            raise UsageError(f"{self.root} has tensors already, and no {OWNER} file; give a new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with (self.folder / OWNER).open("x", encoding="utf-8") as file:
                file.write(f"{ledger}\n{path}\n")
        except FileExistsError:
            raise UsageError(f"{self.root} belongs to another ledger; give a folder of its own") from None

    def owner(self) -> str | None:
        """The id of the ledger that a folder belongs to; None where that is not said."""
        lines = self._owner_lines()
        return lines[0].strip() if lines else None

    def check_not_of_another(self, ledger: str) -> None:
        """Raises UsageError where a folder belongs to another ledger, whose gc removes what that one does not name."""
        if self.owner() not in (None, ledger):
            where = self._owner_lines()[1:2] or ["another place"]
            raise UsageError(f"{self.root} belongs to another ledger, made in {where[0]}; give a folder of its own")

    def _owner_lines(self) -> list[str]:
        if self.folder is None or not (self.folder / OWNER).is_file():
            return []
        return (self.folder / OWNER).read_text(encoding="utf-8").splitlines()

    # --- reading ----------------------------------------------------------------------------------------------------

    def get(self, entry: Entry, name: str) -> np.ndarray:
        """The array of an entry, read only. Raises DamagedError, naming the tensor and the file."""
        dtype = DTYPES[entry.dtype]
        parts = [self._get(c, dtype, s, name) for c, s in zip(entry.chunks, entry.chunk_shapes(), strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _get(self, chunk: str, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> np.ndarray:
        content = self.read(chunk, name)
        header = _header(dtype, shape)
        if content[: len(header)] != header:
            raise DamagedError(f"{self.shown(chunk)} holds another type or shape than {name} has in its commit")
        return np.frombuffer(content, dtype, offset=len(header)).reshape(shape)

    def read(self, chunk: str, name: str) -> bytes:
        """The bytes of a file that are certainly those of its name. Raises DamagedError."""
        try:
            content = self._fs.cat_file(self._path(chunk)) if self.folder is None else self.file(chunk).read_bytes()
        except FileNotFoundError:
            raise DamagedError(f"{self.shown(chunk)} is missing; {name} is in it") from None
        if hashlib.sha256(content).hexdigest() != chunk:
            raise DamagedError(f"{self.shown(chunk)} is damaged: it is not what its name says; {name} is in it")
        return content

    def size(self, chunk: str) -> int | None:
        """Bytes of a file; None where there is none."""
        try:
            if self.folder is not None:
                return os.stat(self._path(chunk)).st_size
            return int(self._fs.info(self._path(chunk))["size"])
        except FileNotFoundError:
            return None

    def listed(self) -> tuple[dict[str, int], list[str]]:
        """Bytes by file, and the paths of what has no such name: torn writes, or files of somebody else."""
        files, others = {}, []
        for path, size in self._walk():
            found = re.fullmatch(r"(..)/([0-9a-f]{64})\.safetensors", path)
            if found and found[2].startswith(found[1]):
                files[found[2]] = size
            elif path != OWNER:
                others.append(path)
        return files, sorted(others)

    def _walk(self) -> Iterator[tuple[str, int]]:
        if self.folder is not None:
            for path in sorted(self.folder.rglob("*")):
                if not path.is_dir():
                    yield path.relative_to(self.folder).as_posix(), path.lstat().st_size
            return
        self._fs.invalidate_cache()
        for path, facts in self._fs.find(self._base, detail=True).items():
            yield path.removeprefix(self._base.rstrip("/") + "/"), int(facts["size"])

    def remove(self, path: str) -> None:
        """Remove what `listed` gave: a chunk by its name, or another path."""
        where = self._path(path) if re.fullmatch("[0-9a-f]{64}", path) else f"{self._base}/{path}"
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(where)

    def file(self, chunk: str) -> Path:
        """The file of a chunk in a folder."""
        return Path(self._path(chunk))

    def shown(self, chunk: str) -> str:
        """The file of a chunk as a person would look for it."""
        return f"{self.root}/{chunk[:2]}/{chunk}{SUFFIX}"

    def _path(self, chunk: str) -> str:
        return f"{self._base}/{chunk[:2]}/{chunk}{SUFFIX}"


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    shapes = chunk_shapes(tuple(array.shape), array.dtype.itemsize)
    if len(shapes) == 1:
        yield array
        return
    first = 0
    for rows, *_ in shapes:
        yield array[first : first + rows]
        first += rows


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The head of a safetensors file with one tensor, the same for equal types and shapes."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    row: Mapping[str, Any] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [0, size]}
    text = json.dumps({"tensor": row}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _digest(*content: Any) -> str:
    found = hashlib.sha256()
    for part in content:
        found.update(part)
    return found.hexdigest()
