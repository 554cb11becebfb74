"""Files wherever they lie: a folder of this machine, or a bucket that fsspec reads (`gs://…`, `s3://…`)."""

from __future__ import annotations

import functools
import glob
import os
import re
from pathlib import Path
from typing import Any

from unimodal.errors import RecordError, UsageError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}


def is_remote(path: str) -> bool:
    return "://" in path


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def parent(path: str) -> str:
    return path.rsplit("/", 1)[0] if is_remote(path) else os.path.dirname(path) or "."


def is_folder(path: str) -> bool:
    return _system(path).isdir(path) if is_remote(path) else os.path.isdir(path)


def expand(pattern: str) -> list[str]:
    """The files that a path, a glob or `{00..07}` names, sorted by name.

    Raises UsageError where there is none.
    """
    if match := _BRACES.search(pattern):
        numbers = range(int(match[1]), int(match[2]) + 1)
        return [
            path
            for number in numbers
            for path in expand(f"{pattern[: match.start()]}{number:0{len(match[1])}d}{pattern[match.end() :]}")
        ]
    if not is_remote(pattern):
        pattern = os.path.expanduser(pattern)
        if os.path.isfile(pattern):
            return [pattern]
        found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    else:
        scheme, system = pattern.partition("://")[0], _system(pattern)
        found = sorted(f"{scheme}://{path.lstrip('/')}" for path in system.glob(pattern) if system.isfile(path))
    if not found:
        raise UsageError(f"no file {pattern}")
    return found


def splits_in(folder: str, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Name of a split → its files: `train.SUFFIX`, or shards `train-0.SUFFIX`, `train_part.SUFFIX`, or a folder `train`."""
    found: dict[str, list[str]] = {}
    for suffix in suffixes:
        for pattern in (f"*{suffix}", f"*/*{suffix}"):
            for path in _maybe(join(folder, pattern)):
                inner = path[len(folder.rstrip("/")) + 1 :].replace(os.sep, "/")
                name = inner.split("/")[0] if "/" in inner else re.split(r"[-_.]", inner)[0]
                found.setdefault(name, []).append(path)
    return {name: sorted(paths) for name, paths in found.items()}


def _maybe(pattern: str) -> list[str]:
    try:
        return expand(pattern)
    except UsageError:
        return []


def open_bytes(path: str) -> Any:
    """The file, open to read bytes at any place. Raises UsageError for a missing backend."""
    return _system(path).open(path, "rb") if is_remote(path) else open(path, "rb")


def read_at(path: str, start: int, length: int) -> bytes:
    """`length` bytes from `start` on. Raises RecordError where the file has become shorter."""
    with open_bytes(path) as file:
        file.seek(start)
        data = file.read(length)
    if len(data) != length:
        raise RecordError(f"{path} ends before byte {start + length}: it has changed since it was opened")
    return data


def stamp(path: str) -> str:
    """A value that changes when the file does: its size and when it was written."""
    if not is_remote(path):
        found = os.stat(path)
        return f"{found.st_size}-{found.st_mtime_ns}"
    info = _system(path).info(path)
    written = next(
        (info[key] for key in ("etag", "ETag", "mtime", "updated", "LastModified", "created") if key in info), ""
    )
    return f"{info['size']}-{written}"


def read_inside(folder: str, name: str, what: str) -> bytes:
    """The bytes of the file `name`, which must lie below `folder`.

    Raises UsageError for a name that leads out of the folder, RecordError for a file that is not there.
    """
    name = name.replace("\\", "/")
    if is_remote(folder) or is_remote(name):
        path = name if is_remote(name) else join(folder, name)
        if ".." in path.split("/") or not path.startswith(f"{folder.rstrip('/')}/"):
            raise UsageError(f"{what}: {name} does not lie in {folder}; say ?root=DIR for where files lie")
        try:
            return _system(path).cat_file(path)
        except FileNotFoundError as error:
            raise RecordError(f"{what}: there is no file {path}") from error
    root = Path(folder).expanduser().resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise UsageError(f"{what}: {name} does not lie in {root}; say ?root=DIR for where files lie")
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise RecordError(f"{what}: there is no file {name} in {root}") from error


@functools.cache
def _backend(scheme: str) -> Any:
    try:
        import fsspec

        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(scheme, "fsspec")
        raise UsageError(f"{scheme}:// needs the package {package}: pip install {package}") from error


def _system(path: str) -> Any:
    return _backend(path.partition("://")[0])
