"""The place of a run's files: a folder, or a bucket as gs://BUCKET/runs/NAME, which all hosts of a pod reach."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from unimodal.errors import StorageError, UsageError


def folder(text: epath.PathLike) -> epath.Path:
    """Turn a workdir as the user names it into a path. Raises UsageError for an address that is neither a folder's nor gs://BUCKET/…"""
    name = str(text)
    if re.match(r"\w+:/", name) and not re.match(r"gs://[a-z0-9][-_.a-z0-9]+[a-z0-9](/|$)", name):
        raise UsageError(f"{name} is no place for a run: give a folder, or a bucket as gs://BUCKET/runs/NAME")
    return epath.Path(text)


def is_remote(path: epath.PathLike) -> bool:
    """True for a path in a bucket, where objects are written whole and cannot be appended to."""
    return str(path).startswith("gs://")


def require_backend(path: epath.PathLike) -> None:
    """Raises UsageError if the package that reaches buckets is missing."""
    if is_remote(path) and not any(importlib.util.find_spec(name) for name in ("gcsfs", "tensorflow")):
        raise UsageError(f"{path} is in a bucket, which takes gcsfs: pip install 'unimodal[gs]'")


def absolute(path: epath.PathLike) -> epath.Path:
    """Make a path independent of the working directory."""
    return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


def write_whole(path: epath.PathLike, text: str, *, suffix: str = ".tmp") -> None:
    """Write or replace a file in one piece: a reader sees either the old file or the new one."""
    if is_remote(path):
        epath.Path(path).write_text(text, encoding="utf-8")
        return
    path = Path(os.fspath(path))
    fresh = path.with_name(path.name + suffix)
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


class Mirror:
    """A local folder for what grows (logs, events, traces), copied to a bucket by a thread of its own.

    Whole files are copied, if they have changed since the last time. A copy that fails is tried again with the next one,
    and reported once.
    """

    def __init__(self, remote: epath.PathLike) -> None:
        self.remote = epath.Path(remote)
        self.local = Path(tempfile.mkdtemp(prefix="unimodal-"))
        self._copied: dict[Path, tuple[int, int]] = {}
        self._thread: threading.Thread | None = None
        self._complained = False

    def fetch(self, name: str) -> None:
        """Fetch a file from the bucket, if it is there."""
        if (self.remote / name).exists():
            (self.local / name).write_bytes((self.remote / name).read_bytes())

    def push(self) -> None:
        """Start to copy changed files, unless a copy is running."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._copy, name="mirror", daemon=True)
            self._thread.start()

    def sync(self) -> None:
        """Copy the files that have changed by now, and wait."""
        if self._thread is not None:
            self._thread.join()
        self._copy()

    def close(self) -> None:
        """Copy the rest and remove the local folder; closing twice is harmless."""
        if self.local.exists():
            self.sync()
            shutil.rmtree(self.local, ignore_errors=True)

    def _copy(self) -> None:
        for path in sorted(self.local.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # a temporary file that was renamed meanwhile
                state = path.stat()
                mark = (state.st_size, state.st_mtime_ns)
                if path.is_dir() or self._copied.get(path) == mark:
                    continue
                try:
                    (self.remote / path.relative_to(self.local).as_posix()).write_bytes(path.read_bytes())
                    self._copied[path] = mark
                except Exception as error:  # whatever the bucket's client raises
                    if not self._complained:
                        print(f"warning: cannot write in {self.remote}: {one_line(error)}", file=sys.stderr, flush=True)
                    self._complained = True


# What the operating system says of a disk that is full, read-only, broken or gone, rather than of a mistake in a path.
_LOST = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM),
}
_REFUSALS = "RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|NOT_FOUND|DATA_LOSS|ABORTED|DEADLINE_EXCEEDED|UNKNOWN"


def lost(error: OSError) -> bool:
    """True if the disk is at fault, and not a path."""
    return error.errno in _LOST


def refusal(error: BaseException | None) -> str | None:
    """Quote what a disk or bucket said, if `error` or an error behind it comes from there; None for another error."""
    while error is not None:
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno is not None:
            return os.strerror(error.errno)
        if code := re.search(r"os_error_code='(\d+)'", text):  # so says the library that writes arrays
            return os.strerror(int(code[1]))
        if status := re.match(rf"({_REFUSALS}): ", text):
            return "a file or folder of it is gone" if status[1] == "NOT_FOUND" else text[:200]
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def writing(what: str, hint: str = "") -> Iterator[None]:
    """Turn what a disk or bucket refuses meanwhile into a StorageError of one line."""
    try:
        yield
    except (StorageError, UsageError):
        raise
    except Exception as error:
        if (reason := refusal(error)) is None:
            raise
        raise StorageError(f"cannot write {what}: {reason}{hint}") from error


def identity(folder: epath.PathLike) -> tuple[int, int] | None:
    """What tells a folder from another one of its name: device and number. None in a bucket, and where there is none."""
    with contextlib.suppress(OSError):
        if not is_remote(folder):
            found = os.stat(folder)
            return found.st_dev, found.st_ino
    return None


@contextlib.contextmanager
def same_place(what: str, folder: epath.PathLike, wanted: tuple[int, int] | None) -> Iterator[None]:
    """Raises StorageError if `folder` is no longer the one that had the identity `wanted`: a mount is lost, say.

    What is written then would lie elsewhere, and whatever went wrong meanwhile comes from that.
    """

    def check(error: Exception | None = None) -> None:
        if identity(folder) != wanted:
            raise StorageError(f"cannot write {what}: it is not the folder that it was; is a mount lost?") from error

    check()
    try:
        yield
    except Exception as error:
        check(error)
        raise
    check()


def one_line(error: BaseException, most: int = 300) -> str:
    """Spell an error without line breaks."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError) and not error.strerror:  # gcsfs gives a long address for a reason
        reason = "there is no such bucket"
    return " ".join(str(reason).split())[:most]
