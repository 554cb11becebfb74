"""Locks of a ledger. They end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from unimodal.errors import UsageError

FILE = "lock"
PATIENCE = 600.0  # seconds that a commit waits for a gc, and a gc for commits


@contextlib.contextmanager
def held(ledger: Path, *, alone: bool, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a ledger: many may write at once, but whoever removes tensors is alone.

    A tensor of a commit that is being written is named by no ref yet, so removing what no ref names must wait. Raises
    UsageError if others do not let go in time.
    """
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with (ledger / FILE).open("a") as file:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    who = "another process writes in" if alone else "a gc runs in"
                    raise UsageError(f"{who} {ledger}, and has for {patience:.0f} s; try again later") from None
                time.sleep(0.05)
        yield  # closing the file lets go
