"""Searches over commits: which one broke a task, and how much of a change to merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unimodal.errors import UsageError
from unimodal.history.effects import Effect, effects
from unimodal.history.measure import Measurement, Measuring
from unimodal.ledger import Commit, Draft, Ledger
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

    limit: the value that tells good from bad (None: halfway between the two). NaN is bad in any case. Raises UsageError
    where `bad` does not come from `good`, or is not worse.
    """
    ledger = measuring.ledger
    first, last = ledger.commit(good), ledger.commit(bad)
    way, asked = _way(ledger, first, last), measuring.of_commit(first, [task])[task]

    def value(commit: Commit) -> Measurement:
        found = measuring.of_commit(commit, [task])[task]
        if (found.metric, found.higher_is_better) != (asked.metric, asked.higher_is_better):
            raise UsageError(
                f"{task} is {asked.metric} at {first.short} and {found.metric} at {commit.short}, which do not compare"
            )
        say(f"{commit.short}  {task} {found.metric} {found.value:.4g}  {commit.subject}")
        return found

    start, end = value(first), value(last)
    sign = 1 if start.higher_is_better else -1
    broken = np.isnan(end.value)
    if limit is None:  # between a number and NaN nothing is halfway: every number is good
        limit = -sign * np.inf if broken else (start.value + end.value) / 2
    if not ((broken or sign * end.value < sign * limit) and sign * limit <= sign * start.value):
        raise UsageError(
            f"{task} is {start.value:.4g} at {first.short} and {end.value:.4g} at {last.short}: nothing broke between them"
            + ("" if sign * limit <= sign * start.value else f", by the limit of {limit:.4g}")
        )
    low, high, count = 0, len(way) - 1, 2  # way[low] is good, way[high] is bad
    while high - low > 1:
        middle, count = (low + high) // 2, count + 1
        # NaN is bad
        low, high = (middle, high) if sign * value(way[middle]).value >= sign * limit else (low, middle)
    return Broken(way[high], effects(measuring, way[low], way[high]), count, limit)


def _way(ledger: Ledger, first: Commit, last: Commit) -> list[Commit]:
    way = [last]
    while way[-1].id != first.id:
        if not way[-1].parents:
            raise UsageError(f"{last.short} does not come from {first.short} by first parents; give an earlier --good")
        way.append(ledger.commit(way[-1].parents[0]))
    return way[::-1]


@dataclass(frozen=True)
class Tried:
    """A scale of a merge, and what it gives: the value of each evaluation, and how far they are above the best branch's."""

    scale: float
    values: dict[str, float]  # by which is chosen: of every second example, where there are numbers of each
    mean: float  # over evaluations: `lead`


@dataclass(frozen=True)
class Found:
    """The best scale, all that were tried, and evaluations that had to be chosen by on all of their examples."""

    scale: float
    tried: list[Tried]
    whole: list[str]


def best_scale(
    measuring: Measuring,
    commits: Sequence[Commit],
    base: Commit | None,
    how: Merging,
    scales: Sequence[float],
    say: Callable[[str], None] = lambda _: None,
) -> Found:
    """The scale whose merge is best on validation, by the mean of `lead` over the evaluations of all branches.

    The choice is made on every second example, so that the others can tell what it comes to (`effects` with `unseen`). An
    evaluation that several branches have is the first one's. Raises UsageError for a method that has no scale.
    """
    if how.method not in FROM_BASE:
        raise UsageError(f"{how.method} has no scale to search; {' and '.join(FROM_BASE)} have")
    owners: dict[str, Commit] = {}
    for commit in commits:
        for name in measuring.names(commit.draft, f"commit {commit.short}"):
            owners.setdefault(name, commit)
    if not owners:
        raise UsageError("the commits have no evaluation by which a scale could be searched; give --scale")
    whole: dict[str, None] = {}

    def values(draft: Draft, what: str) -> dict[str, Measurement]:
        found: dict[str, Measurement] = {}
        for owner in commits:
            names = [name for name, one in owners.items() if one is owner]
            for name, one in measuring.of_draft(asked_as(draft, owner.draft), what, names).items():
                value_of = measuring.value_of(owner.draft, name, what)
                if value_of is None or not one.divisible:
                    whole[name] = None
                    found[name] = one
                else:
                    half = one.half(0)
                    found[name] = replace(half, value=half.made(value_of))
        return found

    before = {} if base is None else values(base.draft, f"commit {base.short}")
    alone = [values(commit.draft, f"commit {commit.short}") for commit in commits]
    tried = []
    for scale in scales:
        draft, _ = merged(commits, base, replace(how, scale=scale))
        found = values(draft, f"a merge with scale {scale:g}")
        leads = [lead(one, [each[name] for each in alone], before.get(name)) for name, one in found.items()]
        tried.append(Tried(scale, {n: m.value for n, m in found.items()}, float(np.mean(leads))))
        say(f"scale {scale:g}: " + ", ".join(f"{n} {v:.4g}" for n, v in tried[-1].values.items()))
    best = max(tried, key=lambda one: -np.inf if np.isnan(one.mean) else one.mean)
    return Found(best.scale, tried, list(whole))


def asked_as(draft: Draft, other: Draft) -> Draft:
    """The weights of a draft with another's config, whose evaluations they are asked."""
    if draft.files == other.files:
        return draft
    files = {path: content for path, content in other.files.items() if not path.startswith("scores/")}
    return Draft(draft.manifest, files)


def lead(found: Measurement, alone: Sequence[Measurement], base: Measurement | None) -> float:
    """How much better a value is than the best branch's, as a share of the larger of that and the base's, by magnitude.

    Where higher is better and the branches are above the base, which is above 0, that is the normalised accuracy of Ilharco
    2023, §4.2, less one. A difference keeps its sign for errors of 0 and for correlations below 0, where a ratio does not.
    """
    sign = 1 if found.higher_is_better else -1
    best = sign * max((sign * one.value for one in alone if not np.isnan(one.value)), default=np.nan)
    unit = max(abs(best), 0.0 if base is None else abs(base.value))
    return sign * (found.value - best) / (unit or 1.0)
