"""SIGTERM outside the training loop, which answers it by itself."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from unimodal.errors import Stopped


@contextlib.contextmanager
def stoppable(when: str) -> Iterator[None]:
    """SIGTERM meanwhile raises Stopped, which says `when` it came."""

    def stop(_number: int, _frame: object) -> None:
        raise Stopped(f"stopped {when}; run the same command to go on")

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: leave signals to whoever is
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
