"""Records that cannot be used are left out, counted and listed; where there are many, the run stops.

In training the next record that can be read takes the place of a bad one, so the order of all others stays a pure function of
(seed, step). In evaluation the place counts nothing.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import threading
from pathlib import Path

from unimodal.data.address import parse
from unimodal.errors import RecordError, UsageError

logger = logging.getLogger(__name__)

ALLOWED = 0.05
"""The share of a split's records that may be bad, where the source does not say (`?bad=0.2`)."""
FILE = "skipped.jsonl"
_ENOUGH = 32  # records looked at, before "most of them are bad" means anything


@dataclasses.dataclass(frozen=True)
class Where:
    """A split of a source, as the config has it."""

    source: str  # as the config has it
    split: str  # train or validation

    def __str__(self) -> str:
        return f"{self.source} {self.split}"

    @property
    def allowed(self) -> float:
        """The share of bad records that a run goes on with."""
        return max(address.number("bad", ALLOWED) for address in parse(self.source))


class Ledger:
    """Records that were left out in this process: (source, split, id) → reason. One file of one line each, without repetitions."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, str], str] = {}
        self.least = 0.0  # the share of a split that may be bad, whatever its source says
        self._path: Path | None = None
        self._bad: collections.Counter[tuple[str, str]] = collections.Counter()  # of `found`, by source and split
        self._looked: collections.Counter[Where] = collections.Counter()
        self._own: dict[Where, set[str]] = {}  # the ids that this process could not use itself
        self._lock = threading.RLock()

    def list_in(self, path: str | os.PathLike[str] | None) -> None:
        """Write what is left out into a file, together with what an earlier part of the run wrote there; None: nowhere."""
        with self._lock:
            self._path = None if path is None else Path(path)
            own = dict(self.found)
            there = self._read()
            if more := [(key, reason) for key, reason in own.items() if key not in there]:
                self._write(more, "a")

    def _read(self) -> set[tuple[str, str, str]]:
        """Take in what the file lists, and return its keys."""
        if self._path is None or not self._path.is_file():
            return set()
        there = set()
        for line in self._path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line torn by a kill, or spoilt, says nothing
                entry = json.loads(line)
                source, split, name, reason = (str(entry[key]) for key in ("source", "split", "id", "reason"))
                there.add((source, split, name))
                self._add((source, split, name), reason)
        return there

    def _add(self, key: tuple[str, str, str], reason: str) -> bool:
        """Count a bad record. Returns whether it is a new one."""
        if new := key not in self.found:
            self.found[key] = reason
            self._bad[key[:2]] += 1
        return new

    @property
    def listed_in(self) -> str | None:
        """The path of the list, None for none."""
        return None if self._path is None else str(self._path)

    def looked(self, where: Where) -> None:
        """One more record was read."""
        with self._lock:
            self._looked[where] += 1

    def note(self, where: Where, name: str, error: RecordError, total: int) -> None:
        """Leave a record out of `total`. Raises UsageError where that are too many."""
        key, reason = (where.source, where.split, name), str(error)
        with self._lock:
            self.looked(where)
            self._own.setdefault(where, set()).add(name)
            if self._add(key, reason):
                if self._path is not None:
                    self._write([(key, reason)], "a")
                if len(self.found) == 1:
                    logger.warning("%s: left out: %s (others are listed, not said)", where, reason)
            # What an earlier part of the run listed is part of the share, but says nothing of the records seen here.
            bad, own, seen = self._bad[key[:2]], len(self._own[where]), self._looked[where]
        if bad > max(where.allowed, self.least) * total or (seen >= _ENOUGH and own > seen / 2):
            listed = "" if self._path is None else f", listed in {self._path}"
            raise UsageError(
                f"{where}: {bad} of {total} records cannot be used{listed}; ?bad={where.allowed:g} is the share that may be: "
                f"{reason}"
            )

    def report(self) -> str:
        """One line, "" where all could be used. Counts what worker processes have listed, too."""
        with self._lock:
            self._read()
        if not self.found:
            return ""
        listed = "" if self._path is None else f"; {self._path} says which and why"
        return f"{len(self.found)} records could not be used and were left out{listed}"

    def clear(self) -> None:
        """Forget all, as a new run does."""
        with self._lock:
            self.found.clear()
            self._bad.clear()
            self._looked.clear()
            self._own.clear()
            self._path, self.least = None, 0.0

    def _write(self, entries: list[tuple[tuple[str, str, str], str]], mode: str) -> None:
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps(dict(source=source, split=split, id=name, reason=reason), ensure_ascii=False) + "\n"
            for (source, split, name), reason in entries
        ]
        with self._path.open(f"{mode}b") as file:
            if mode == "a" and file.tell() and not _ends_a_line(self._path):
                lines.insert(0, "\n")  # after a line that a kill has torn
            file.write("".join(lines).encode("utf-8", "backslashreplace"))


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


LEDGER = Ledger()
"""Of this process."""
