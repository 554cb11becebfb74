"""TensorBoard events, written by the thread that has them: what fails, fails here, and nothing waits for it."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from unimodal.storage import one_line

_FLUSH_SECONDS = 10.0


class Events:
    """One event file below `folder`. `purge_step`: TensorBoard hides what an earlier run logged from there on.

    The events are a view of metrics.jsonl. Where they can no longer be written, that is said once, and they end.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Files are named by the second: without a suffix, a quick restart would overwrite the run before it.
        self._file: EventsWriter | None = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._flushed = time.monotonic()
        if purge_step is not None:
            self._file.write_event(Event(step=purge_step, file_version="brain.Event:2"))
            self._file.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
            self.flush()

    def add(self, tag: str, value: float, step: int) -> None:
        with self._or_end():
            if self._file is not None:
                self._file.write_event(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        with self._or_end():
            if self._file is not None:
                self._file.flush()

    def close(self) -> None:
        """Closing twice is harmless."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    @contextlib.contextmanager
    def _or_end(self):
        try:
            yield
        except OSError as error:
            print(f"warning: no more TensorBoard events: {one_line(error)}", file=sys.stderr, flush=True)
            self.close()
