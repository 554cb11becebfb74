"""Searches over commits: which one broke a task, and how much of a change to merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unimodal.errors import UsageError
from unimodal.history.effects import Effect, effects
from unimodal.history.measure import Measurement, Measuring
from unimodal.ledger import Commit, Ledger
from unimodal.ledger.changes import FROM_BASE, Merging, merged


@dataclass(frozen=True)
class Broken:
    """What `bisect` found: the first commit whose value is on the bad side, what it did to all tasks, and how many were asked."""

    commit: Commit
    effects: list[Effect]
    asked: int
    limit: float


def bisect(
    measuring: Measuring,
    good: str,
    bad: str,
    task: str,
    limit: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Broken:
    """The first commit after `good`, on the way of first parents to `bad`, that is nearer to bad than to good.

    limit: the value that tells good from bad (None: halfway between the two). Raises UsageError where `bad` does not come
    from `good`, or is not worse.
    """
    ledger = measuring.ledger
    first, last = ledger.commit(good), ledger.commit(bad)
    way = _way(ledger, first, last)

    def value(commit: Commit) -> Measurement:
        found = measuring.of_commit(commit, [task])[task]
        say(f"{commit.short}  {task} {found.metric} {found.value:.4g}  {commit.subject}")
        return found

    start, end = value(first), value(last)
    sign = 1 if start.higher_is_better else -1
    limit = (start.value + end.value) / 2 if limit is None else limit
    if not sign * end.value < sign * limit <= sign * start.value:
        raise UsageError(
            f"{task} is {start.value:.4g} at {first.short} and {end.value:.4g} at {last.short}: nothing broke between them"
            + ("" if sign * limit <= sign * start.value else f", by the limit of {limit:.4g}")
        )
    low, high, asked = 0, len(way) - 1, 2  # way[low] is good, way[high] is bad
    while high - low > 1:
        middle, asked = (low + high) // 2, asked + 1
        # NaN is bad
        low, high = (middle, high) if sign * value(way[middle]).value >= sign * limit else (low, middle)
    return Broken(way[high], effects(measuring, way[low], way[high]), asked, limit)


def _way(ledger: Ledger, first: Commit, last: Commit) -> list[Commit]:
    way = [last]
    while way[-1].id != first.id:
        if not way[-1].parents:
            raise UsageError(f"{last.short} does not come from {first.short} by first parents; give an earlier --good")
        way.append(ledger.commit(way[-1].parents[0]))
    return way[::-1]


@dataclass(frozen=True)
class Tried:
    """A scale of a merge, and what it gives: the value of each task, and their mean, each as a share of the best branch's."""

    scale: float
    values: dict[str, float]
    mean: float


def best_scale(
    measuring: Measuring,
    commits: Sequence[Commit],
    base: Commit | None,
    how: Merging,
    scales: Sequence[float],
    say: Callable[[str], None] = lambda _: None,
) -> tuple[float, list[Tried]]:
    """The scale whose merge is best on validation, by the mean over tasks of each value as a share of the best branch's
    (the normalised accuracy of Ilharco 2023, §4.2). Raises UsageError for a method that has no scale."""
    if how.method not in FROM_BASE:
        raise UsageError(f"{how.method} has no scale to search; {' and '.join(FROM_BASE)} have")
    alone = [measuring.of_commit(commit) for commit in commits]
    best = {name: _best([found[name] for found in alone if name in found]) for name in alone[0]}
    tried = []
    for scale in scales:
        draft, _ = merged(commits, base, replace(how, scale=scale))
        found = measuring.of_draft(draft, f"a merge with scale {scale:g}")
        shares = [_share(found[name], best[name]) for name in best]
        tried.append(Tried(scale, {n: m.value for n, m in found.items()}, float(np.mean(shares))))
        say(f"scale {scale:g}: " + ", ".join(f"{n} {v:.4g}" for n, v in tried[-1].values.items()))
    return max(tried, key=lambda one: -np.inf if np.isnan(one.mean) else one.mean).scale, tried


def _best(found: Sequence[Measurement]) -> float:
    values = [one.value for one in found]
    return max(values) if found[0].higher_is_better else min(values)


def _share(found: Measurement, best: float) -> float:
    top, bottom = (found.value, best) if found.higher_is_better else (best, found.value)
    return top / bottom if bottom else float(top == bottom)
