"""Checks, before the first step, for data that training could not use."""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from unimodal.data.audio import sound_length
from unimodal.data.blocks.inputs import find_column
from unimodal.data.blocks.sounds import OBVIOUS, Sounds
from unimodal.data.dataset import Source
from unimodal.data.sources import open_source
from unimodal.errors import RecordError, UsageError

logger = logging.getLogger(__name__)

LOOKED_AT = 1000
"""Records of a split whose headers are read, spread over all of it: enough for a share, and a matter of seconds."""


def spread(source: Source) -> Iterator[Mapping[str, Any]]:
    """Read up to LOOKED_AT records at even distances, without those that cannot be read."""
    count = min(len(source), LOOKED_AT)
    for i in range(count):
        with contextlib.suppress(RecordError):
            yield source[i * len(source) // count]


def headers(sounds: Sounds, source: Source) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Records of `spread` with their samples at the block's rate, by the file's header alone; without those that have none."""
    for record in spread(source):
        found = find_column(record, sounds.column, OBVIOUS, "a sound")
        with contextlib.suppress(RecordError):
            yield record, sound_length(record[found], sounds.rate, str(record["id"]), record.get("rate"))


def warn_of_short(where: str, source: str, sounds: Sounds, enough: Callable[[int], bool], why: str) -> None:
    """Warn before the first step of recordings that are too short to learn from. enough: samples → whether they are.

    Raises UsageError where that is so of most of a split.
    """
    for split, what in (("train", "will be skipped"), ("validation", "will be left out of the score")):
        reasons = ["" if enough(samples) else why for _, samples in headers(sounds, open_source(source, split))]
        warn_of_unused(f"{where}, {source} {split}", reasons, what)


def warn_of_unused(where: str, reasons: Iterable[str], what: str, advice: str = "") -> None:
    """Count the reasons for which examples go unused, "" for those that do not, and say so in one line.

    `what` becomes of them: "will be skipped". Raises UsageError where that is so of more than half.
    """
    found = collections.Counter(reasons)
    total, used = sum(found.values()), found.pop("", 0)
    if not found:
        return
    of = f"{total} examples looked at" if total == LOOKED_AT else f"{total} examples"
    why = ", ".join(f"{count} {reason}" for reason, count in found.most_common())
    line = f"{where}: {total - used} of {of} {what}: {why}{'; ' if advice else ''}{advice}"
    if used < total / 2:
        raise UsageError(line)
    logger.warning("%s", line)
