"""One run at a time in a workdir that lies in a bucket, where no kernel holds a lock: a file that its holder keeps renewing.

Fischer's algorithm (Lamport 1987, "A fast mutual exclusion algorithm", §2): who finds the place free writes its name there,
waits for longer than a write takes, and has the place if its name is still there. Of several that begin at once the last to
write has it, and the others see that. A holder renews the file every `BEAT` seconds; a file that does not change for
`PATIENCE` was left by a run that has crashed, and is free. Time is told by this machine's monotonic clock alone, and by whether
the file changes, so clocks that jump or differ do no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from etils import epath

from unimodal.errors import UsageError
from unimodal.storage import one_line

BEAT = 20.0  # seconds between two renewals
PATIENCE = 90.0  # without a change, after which the holder is taken for dead
SETTLE = 5.0  # longer than a write of a few bytes takes


class Lease:
    """The file `path`, held meanwhile. Raises UsageError if another run holds it.

    A holder that was silent for so long that another has taken its place (a machine that was suspended, a network that was
    gone) must write nothing more: `ended` is called, which ends the process at once.
    """

    def __init__(
        self,
        path: epath.Path,
        *,
        beat: float = BEAT,
        patience: float = PATIENCE,
        settle: float = SETTLE,
        ended: Callable[[str], Any] | None = None,
        tell: Callable[[str], Any] = lambda text: print(text, flush=True),
    ) -> None:
        self._path, self._beat, self._patience, self._settle = path, beat, patience, settle
        self._ended, self._tell = ended or _end, tell
        self._mine = {"token": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._count = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        try:
            self._take()
        except UsageError:
            raise
        except Exception as error:  # whatever a bucket's client raises
            raise UsageError(f"cannot write in workdir {self._path.parent}: {one_line(error)}") from error
        self._thread.start()
        return self

    def _take(self) -> None:
        self._wait_for_the_dead()
        self._write()
        time.sleep(self._settle)
        if (there := self._read()).get("token") != self._mine["token"]:
            raise self._in_use(there)
        self._write()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=10.0)
        with contextlib.suppress(Exception):  # whatever a bucket's client raises; then it is free after a while
            if self._read().get("token") == self._mine["token"]:
                self._path.unlink()

    def _wait_for_the_dead(self) -> None:
        """Return once the place is free, or was left by a run that is dead."""
        there = self._read()
        if not there:
            return
        self._tell(
            f"{self._path} is held{_by_whom(there)}: looking for {self._patience:.0f} s whether that run is alive …"
        )
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            time.sleep(min(self._beat / 2, self._patience / 10))
            now = self._read()
            if not now:
                return
            if now != there:
                raise self._in_use(now if "host" in now else there)

    def _in_use(self, there: Any) -> UsageError:
        return UsageError(
            f"{self._path.parent} is in use{_by_whom(there)}; wait until that run has ended, or choose another workdir"
        )

    def _read(self) -> dict[str, Any]:
        """What the file says; {} if there is none."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            found = None
        return found if isinstance(found, dict) and found else {"token": None}

    def _write(self) -> None:
        self._count += 1
        self._path.write_text(json.dumps({**self._mine, "beat": self._count}), encoding="utf-8")

    def _renew(self) -> None:
        while not self._over.wait(self._beat):
            with contextlib.suppress(Exception):  # a bucket that does not answer now is asked again
                there = self._read()
                if there and there.get("token") != self._mine["token"]:
                    self._over.set()
                    self._ended(
                        f"{self._path.parent} was taken over{_by_whom(there)}, as this one was silent for too long"
                    )
                    return
                self._write()


def _by_whom(there: Any) -> str:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return f" by process {int(there['pid'])} on {there['host']}"
    return " by another process"


def _end(reason: str) -> None:
    sys.stderr.write(f"error: {reason}\n")
    sys.stderr.flush()
    os._exit(74)
