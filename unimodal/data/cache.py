"""Decoded records, kept in memory as far as a budget goes."""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.dataset import Source
from unimodal.data.reading import READING
from unimodal.data.shares import Weight, parts_of
from unimodal.data.skipped import LEDGER, Where
from unimodal.data.spec import STAND_IN
from unimodal.data.values import id_at
from unimodal.errors import RecordError, UsageError

logger = logging.getLogger(__name__)

Decode = Callable[[dict[str, Any]], dict[str, Any]]

_OVERHEAD = 100  # bytes of a Python object and its place in a container, about


class Budget:
    """So many bytes, shared by all that draw on it."""

    def __init__(self, size: int):
        self.size = size
        self.used = 0
        self._lock = threading.RLock()  # re-entrant: what is collected meanwhile gives back in the same thread
        self._said = False

    def take(self, size: int) -> bool:
        """Take `size` bytes if there are so many. That there are not is logged, once."""
        with self._lock:
            fits = self.used + size <= self.size
            said, self._said = self._said, self._said or not fits
            if fits:
                self.used += size
        if not fits and not said:
            logger.warning("decoded records beyond %.2g GiB are decoded anew each time (said once)", self.size / 2**30)
        return fits

    def give_back(self, size: int) -> None:
        with self._lock:
            self.used -= size


PROCESS = Budget(1 << 30)
"""What all cached sources of this process hold together."""


class _Cached:
    def __init__(self, source: Source, decode: Decode, budget: Budget | None, where: Where | None):
        self.source, self.decode, self.budget, self.where = source, decode, budget, where
        self._memory: dict[int, dict[str, Any]] = {}
        self._held = [0]  # bytes; a list, as what gives them back must not know this object
        self._lock = threading.Lock()
        if budget is not None:
            weakref.finalize(self, lambda held: budget.give_back(held[0]), self._held)

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process without what is in memory here; it has a budget of its own there."""
        return _again, (self.source, self.decode, self.budget is not None, self.where)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def parts(self) -> tuple[tuple[int, float | Weight], ...]:
        """The weights of joined sources."""
        return parts_of(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._memory.get(index)
        if record is None:
            # Two threads may decode the same record once each; both results are equal, and one is kept.
            record = self._decoded(index)
            _freeze(record)
            self._keep(index, record)
        return dict(record)

    def _decoded(self, index: int) -> dict[str, Any]:
        """The record, or the next one that can be used, marked STAND_IN."""
        if self.where is None:
            return self.decode(self.source[index])
        for step in range(len(self)):
            place, name = (index + step) % len(self), None
            try:
                READING.at(f"{self.where} number {place}")
                record = self.source[place]
                name = str(record["id"])
                READING.at(f"{self.where} {name}")
                made = self.decode(record)
            except RecordError as error:
                LEDGER.note(self.where, name or id_at(self.source, place), error, len(self))
                continue
            LEDGER.looked(self.where)
            return {**made, STAND_IN: True} if step else made
        raise UsageError(f"{self.where}: no record can be used")

    def _keep(self, index: int, record: dict[str, Any]) -> None:
        if self.budget is None:
            return
        size = _bytes_of(record)
        with self._lock:
            if index not in self._memory and self.budget.take(size):
                self._memory[index] = record
                self._held[0] += size


def _again(source: Source, decode: Decode, kept: bool, where: Where | None) -> Source:
    return _Cached(source, decode, PROCESS if kept else None, where)


def cached(source: Source, decode: Decode, *, budget: Budget = PROCESS, where: Where | None = None) -> Source:
    """The source with `decode(record)` applied once per record, as long as `budget` has room for what comes out.

    The first records stay, rather than the last ones used: epochs read all records in ever new orders, so keeping the
    latest would find no more of them, and in one fixed order none at all. What has no room is decoded each time. The
    room comes back when nobody holds the source any more.

    where: what the source is called; a record that cannot be used (RecordError) is then left out and listed (`skipped`), and
    the next one stands in for it. Without, the error is raised.

    Arrays come back read-only, in lists and maps too, so that a transform that writes in place fails at once and not an
    epoch later.
    """
    return _Cached(source, decode, budget, where)


def stood_in(source: Source, where: Where) -> Source:
    """The source, whose records that cannot be used are left out and listed, as `cached` does; none is kept in memory."""
    return _Cached(source, dict, None, where)


def _freeze(value: Any) -> None:
    """Make all arrays within a value of a record read-only."""
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    elif isinstance(value, Mapping):
        for inner in value.values():
            _freeze(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _freeze(inner)


def _bytes_of(value: Any) -> int:
    """Memory that a value of a record holds on to."""
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):  # a view keeps all of what it looks at
            value = value.base
        return value.nbytes + _OVERHEAD
    if isinstance(value, Image.Image):
        return value.width * value.height * (4 if value.mode == "RGB" else len(value.getbands())) + _OVERHEAD
    if isinstance(value, Mapping):
        return _OVERHEAD + sum(_OVERHEAD + _bytes_of(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return _OVERHEAD + sum(_bytes_of(inner) for inner in value)
    return sys.getsizeof(value)
