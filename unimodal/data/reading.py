"""The record that a worker process is reading, in a file that outlives the process: what it died of has a name."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_ROOM = 1024  # bytes of a name


class Reading:
    """What this process reads at the moment. Nothing is kept before `show_in`."""

    def __init__(self) -> None:
        self._shown: mmap.mmap | None = None

    def show_in(self, folder: str | os.PathLike[str]) -> None:
        """Keep the name in a file of `folder` from now on, whatever becomes of this process."""
        path = Path(folder) / str(os.getpid())
        path.write_bytes(bytes(_ROOM))
        with path.open("r+b") as file:
            self._shown = mmap.mmap(file.fileno(), _ROOM)

    def at(self, name: object) -> None:
        """Say what is read now; "" for nothing."""
        if self._shown is not None:
            self._shown[:] = str(name).encode("utf-8", "replace")[:_ROOM].ljust(_ROOM, b"\0")


def last_read(folder: str | os.PathLike[str]) -> set[str]:
    """What the processes that show it in `folder` were reading when they were last heard of."""
    found = {path.read_bytes().rstrip(b"\0").decode("utf-8", "replace") for path in Path(folder).iterdir()}
    return found - {""}


READING = Reading()
"""Of this process."""
