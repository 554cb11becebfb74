"""Programs that are compared take turns, so that a machine that slows down does so for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Times:
    """Seconds of a program: its first call, which may compile, and those of the rounds that count."""

    first: float
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, other: Times) -> str:
        """How much longer it took than the other: the median of the rounds' ratios, and their range."""
        ratios = sorted(a / b for a, b in zip(self.rounds, other.rounds, strict=True))
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def seconds(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call, which waits for its device itself. clock: `time.process_time` for seconds of CPU."""
    start = clock()
    call()
    return clock() - start


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm: int = 2,
    settle: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Each call once in every round; before them each `warm` times (at least once), not counted.

    settle: at its turn a program is called once more, before the call that counts. It then finds its own data in the
    caches and its own memory, as one that runs by itself does.
    """
    first = {name: seconds(call, clock) for name, call in calls.items()}
    for _ in range(warm - 1):
        for call in calls.values():
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if settle:
                call()
            found[name].append(seconds(call, clock))
    return {name: Times(first[name], tuple(found[name])) for name in calls}
