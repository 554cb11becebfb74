"""What training could not use is found before the first step."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unimodal.data.audio import sound_length
from unimodal.data.blocks.inputs import find_column
from unimodal.data.blocks.sounds import OBVIOUS, Sounds
from unimodal.data.pipeline import Source
from unimodal.data.sources import open_source
from unimodal.errors import UsageError

logger = logging.getLogger(__name__)

LOOKED_AT = 1000
"""Records of a split whose headers are read, spread over all of it: enough for a share, and a matter of seconds."""


def spread(source: Source) -> Iterable[Mapping[str, Any]]:
    """Up to LOOKED_AT records at even distances."""
    count = min(len(source), LOOKED_AT)
    return (source[i * len(source) // count] for i in range(count))


def samples_of(sounds: Sounds, record: Mapping[str, Any]) -> int:
    """Samples at the block's rate, by the file's header alone."""
    found = find_column(record, sounds.column, OBVIOUS, "a sound")
    return sound_length(record[found], sounds.rate, str(record["id"]), record.get("rate"))


def warn_of_short(where: str, source: str, sounds: Sounds, enough: Callable[[int], bool], why: str) -> None:
    """Warn before the first step of recordings that are too short to learn from. enough: samples → whether they are.

    Raises UsageError where that is so of most of a split.
    """
    for split, what in (("train", "will be skipped"), ("validation", "will be left out of the score")):
        found = (samples_of(sounds, record) for record in spread(open_source(source, split)))
        reasons = ["" if enough(samples) else why for samples in found]
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
