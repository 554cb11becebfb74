"""One run at a time in a workdir: two would take turns at overwriting each other's checkpoints."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from etils import epath

from unimodal.errors import UsageError
from unimodal.storage import is_remote, one_line
from unimodal.training.lease import Lease

FILE_NAME = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


@contextlib.contextmanager
def alone(workdir: epath.PathLike) -> Iterator[None]:
    """Hold WORKDIR/.lock meanwhile. Raises UsageError if another process holds it.

    The kernel lets go of the lock when the process ends, however it ends, so a crashed run locks nobody out; the file
    stays, and says who had it last. A bucket has no such thing, but a `Lease`; on a file system without locks nothing is
    held.
    """
    if is_remote(workdir):
        with Lease(epath.Path(workdir) / FILE_NAME):
            yield
        return
    fresh = not Path(workdir).exists()
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        file = (Path(workdir) / FILE_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write in workdir {workdir}: {one_line(error)}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UsageError(
                f"{workdir} is in use{_by_whom(file.read())}; wait until that run has ended, or choose another workdir"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if not _is_there(file, Path(workdir) / FILE_NAME):  # its last holder has just taken it away
            raise UsageError(f"{workdir} was in use a moment ago; give the command again")
        file.seek(0)
        file.truncate()
        with contextlib.suppress(OSError):  # a full disk takes no name, but the lock holds
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}))
            file.flush()
        try:
            yield
        finally:
            if fresh and [path.name for path in Path(workdir).iterdir()] == [FILE_NAME]:
                # A run that was refused before it wrote anything leaves nothing.
                with contextlib.suppress(OSError):
                    (Path(workdir) / FILE_NAME).unlink()
                    Path(workdir).rmdir()


def _is_there(file: IO[str], path: Path) -> bool:
    """True if the path still leads to the file that is open."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _by_whom(text: str) -> str:
    try:
        found = json.loads(text)
        return f" by process {int(found['pid'])} on {found['host']} since {found['since']}"
    except (ValueError, KeyError, TypeError):  # not written yet
        return " by another process"
