"""Requests that come together are answered together: one thread owns the device, and takes what waits."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from unimodal.answers import Asked
from unimodal.errors import UsageError
from unimodal.use.answering import answered
from unimodal.use.inputs import Entry

Key = tuple[str | None, str | None, Asked]  # task, what it gives, what is said along


class FullError(RuntimeError):
    """More requests wait than may, or than can be answered in time."""


@dataclass
class Job:
    """One input on its way to an answer."""

    key: Key  # jobs of one key may share a batch
    entry: Entry  # the input
    future: Future[dict[str, Any]] = field(default_factory=Future)  # where its answer goes


class Batcher:
    """Answers jobs in batches of at most `batch_size`, of one question each. wait: seconds that the first of a batch waits
    for others; most: jobs that may wait, whatever they ask."""

    def __init__(self, loaded: Any, *, batch_size: int = 32, wait: float = 0.005, most: int = 1024):
        self.loaded, self.batch_size, self.wait, self.most = loaded, batch_size, wait, most
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._put_back: list[Job] = []
        self.batches = self.answered = 0
        self._full: deque[float] = deque(maxlen=9)  # seconds that the last full batches took
        self._thread = threading.Thread(target=self._run, name="unimodal-batcher", daemon=True)
        self._thread.start()

    def submit(self, key: Key, entry: Entry, within: float | None = None) -> Future[dict[str, Any]]:
        """The answer, when it comes. within: seconds that the caller waits for it. Raises FullError, also where those before it
        will take longer than that."""
        job = Job(key, entry)
        if within is not None and self.expected > within:
            raise FullError("more requests wait than can be answered in time; try again in a moment")
        # Not by a bound of the queue, which those of another question leave to wait on among `_put_back`.
        if self.waiting >= self.most:
            raise FullError("too many requests wait; try again in a moment")
        self._waiting.put(job)
        return job.future

    @property
    def waiting(self) -> int:
        """Jobs that nobody has begun."""
        return self._waiting.qsize() + len(self._put_back)

    @property
    def expected(self) -> float:
        """Seconds that those who wait will take, in full batches; 0 before three of these have shown how long one is. The median
        leaves out batches that had to be compiled."""
        return -(-self.waiting // self.batch_size) * statistics.median(self._full) if len(self._full) > 2 else 0.0

    def close(self) -> None:
        """Answer what waits, and stop."""
        self._waiting.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (jobs := self._take()) is not None:
            live = [job for job in jobs if job.future.set_running_or_notify_cancel()]  # whoever timed out is gone
            if not live:
                continue
            began = time.monotonic()
            try:
                task, gives, asked = live[0].key
                asking = self.loaded.asking(asked, task, gives=gives, batch_size=self.batch_size)
                rows = list(answered(asking, [job.entry for job in live]))
            except UsageError as error:
                rows = [{"error": str(error)} for _ in live]
            except Exception as error:  # a bug, or no memory: these fail, and the server lives
                for job in live:
                    job.future.set_exception(error)
                continue
            if len(rows) == self.batch_size:
                self._full.append(time.monotonic() - began)
            self.batches, self.answered = self.batches + 1, self.answered + len(rows)
            for job, row in zip(live, rows, strict=True):
                job.future.set_result(row)

    def _take(self) -> Sequence[Job] | None:
        """Jobs of one question; None at the end. Those of another question are next."""
        first = self._put_back.pop(0) if self._put_back else self._waiting.get()
        if first is None:
            return None
        jobs, until = [first], time.monotonic() + self.wait
        same = [job for job in self._put_back if job.key == first.key][: self.batch_size - 1]
        self._put_back = [job for job in self._put_back if job not in same]
        jobs += same
        while len(jobs) < self.batch_size:
            try:
                job = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._waiting.put(None)
                break
            (jobs if job.key == first.key else self._put_back).append(job)
        return jobs
