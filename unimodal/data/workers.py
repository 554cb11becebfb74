"""Batches made by other processes, for decoding that Python's threads would do one after another.

Batch n is a pure function of n, so it does not matter who makes it: the order is that of one process, and the position is one
number, whatever the number of workers was when it was saved. Workers are started afresh (no fork), import no JAX
(`unimodal/worker.py`), see no accelerator, and keep what they decode to themselves.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cloudpickle

from unimodal.data.handing import handed, taken
from unimodal.data.reading import READING, last_read
from unimodal.data.skipped import LEDGER
from unimodal.data.stored import STORE
from unimodal.errors import UsageError
from unimodal.worker import Alone, begin

_READY = 2  # batches that each worker may be ahead
_batches: Any = None  # of a worker


def open_data(packed: bytes, listed: str | None, stored: int, shown: str) -> None:
    """Open the data in a worker."""
    os.environ.update(JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="")
    global _batches
    _batches = cloudpickle.loads(packed)
    LEDGER.list_in(listed)
    STORE.limit(stored)
    READING.show_in(shown)


def _make(index: int) -> Any:
    made = handed(_batches[index])
    READING.at("")
    return made


class WorkerBatches:
    """Endless batches of a sequence that can be pickled, made by `workers` processes."""

    def __init__(self, batches: Any, workers: int) -> None:
        self._packed, self._workers, self._next = cloudpickle.dumps(batches), workers, 0
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._shown = ""  # the folder in which workers show what they read
        self._waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        suspects: set[str] = set()
        for attempt in (1, 2):
            try:
                self._fill()
                made = self._taken(self._waiting[0].result())
                self._waiting.popleft()
                self._next += 1
                break
            except BrokenProcessPool as error:
                # The record that a worker died of was read both times; what others read, who ended with it, need not be.
                read = last_read(self._shown) if self._shown else set()
                suspects = suspects & read or read
                self.close()
                if attempt == 2:
                    where = f", reading {' or '.join(sorted(suspects))}" if suspects else ""
                    raise UsageError(
                        f"a worker died twice over batch {self._next}{where}: out of memory, or a record that ends the "
                        f"process; workers=0 makes it in this process"
                    ) from error
        # What died meanwhile is started again for the next batch, which asks for it; this one is made.
        with contextlib.suppress(BrokenProcessPool):
            self._fill()
        return made

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._next = int(state["next_index"])

    def close(self) -> None:
        """End the workers. The next batch starts others."""
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        if self._shown:
            shutil.rmtree(self._shown, ignore_errors=True)
        self._shown = ""

    @staticmethod
    def _taken(made: Any) -> Any:
        try:
            return taken(made)
        except (OSError, EOFError) as error:  # its worker died after it had made it
            raise BrokenProcessPool from error

    def _fill(self) -> None:
        if self._pool is None:
            self._shown = tempfile.mkdtemp(prefix="unimodal-")
            weakref.finalize(self, shutil.rmtree, self._shown, ignore_errors=True)
            told = (f"{__name__}:{open_data.__name__}", self._packed, LEDGER.listed_in, STORE.size, self._shown)
            self._pool = concurrent.futures.ProcessPoolExecutor(self._workers, Alone(), begin, told)
        while len(self._waiting) < _READY * self._workers:
            self._waiting.append(self._pool.submit(_make, self._next + len(self._waiting)))
