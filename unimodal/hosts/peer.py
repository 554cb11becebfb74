"""One connection between two processes, and the words and numbers with which a run ends."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

EXIT_USAGE = 2  # something to mend first: starting again does not help
EXIT_DIVERGED = 3  # numbers that are not finite, again and again: starting again does not help either
EXIT_REPLICAS = 4  # a device has computed wrong numbers: the same command goes on, on devices that compute right ones
EXIT_STORAGE = 74  # a disk or bucket is full, gone or read-only: make room first, then the same command goes on
EXIT_STOPPED = 75  # told to stop, and did so with a checkpoint: run the same command again
EXIT_LOST = 76  # another process died or fell silent: run the same command again


class LostError(RuntimeError):
    """Another process is missing. The message is one line that names it; starting again may help."""


@dataclass
class Peer:
    """The other end of a connection."""

    process: int  # its number
    host: str  # its name, for messages
    connection: socket.socket  # an open socket
    heard: float  # when it was last heard of, by time.monotonic
    rest: bytes = b""  # bytes of a message that is not whole yet
    left: bool = False  # it has said goodbye
    lock: threading.Lock = field(default_factory=threading.Lock)  # one writer at a time

    def send(self, **message: Any) -> None:
        """Send a message. It ignores errors: the reader sees the connection close."""
        try:
            with self.lock:
                self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def lines(self) -> list[dict[str, Any]] | None:
        """Receive messages. None: the connection is closed."""
        try:
            new = self.connection.recv(1 << 16)
        except OSError:
            return None
        if not new:
            return None
        *whole, self.rest = (self.rest + new).split(b"\n")
        self.heard = time.monotonic()
        return [json.loads(line) for line in whole]


def listed(names: Sequence[str], most: int = 8) -> str:
    """Join names as "a, b and c", or the first few of many."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
