"""What a change of the weights did to each task, with an interval from the examples that both were asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from unimodal.evaluation.bootstrap import ValueOf, drawn_values, interval
from unimodal.history.measure import Measurement, Measuring
from unimodal.ledger import Commit


@dataclass(frozen=True)
class Effect:
    """One evaluation before and after, on the examples that both were asked, where there are numbers of each.

    low, high: the 95 % interval of after − before; NaN where there is none. asked: examples of either.
    """

    name: str
    metric: str
    higher_is_better: bool
    before: float
    after: float
    low: float = math.nan
    high: float = math.nan
    examples: int = 0
    asked: int = 0
    comparable: bool = True  # both are values of one metric

    @property
    def change(self) -> float:
        return self.after - self.before if self.comparable else math.nan

    @property
    def gain(self) -> float:
        """The change, counted so that more is better."""
        return self.change if self.higher_is_better else -self.change

    @property
    def verdict(self) -> str:
        """ "gained" or "lost" where the interval leaves 0 out; "same" for an equal value, else "unclear". Values of two
        metrics are "incomparable"."""
        if not self.comparable:
            return "incomparable"
        if self.before == self.after and not (self.low < 0 < self.high):
            return "same"
        if math.isnan(self.change):
            return "lost" if math.isnan(self.after) else "unclear"
        if math.isnan(self.low) or self.low <= 0 <= self.high:
            return "unclear"
        return "gained" if (self.low > 0) == self.higher_is_better else "lost"


def effects(
    measuring: Measuring, before: Commit, after: Commit, *, ask: bool = True, unseen: bool = False
) -> list[Effect]:
    """Every evaluation that both commits have, asked of both; without `ask`, those that both were asked already.

    unseen: a choice was made on half of the examples (`Measurement.half`), so compare the others.
    """
    if ask:
        names = [measuring.names(commit.draft, f"commit {commit.short}") for commit in (before, after)]
        shared = [name for name in names[1] if name in names[0]]
        old, new = (measuring.of_commit(commit, shared) for commit in (before, after))
    else:
        old, new = measuring.known(before), measuring.known(after)
    found = []
    for name in (name for name in new if name in old):
        asked = new[name].half(1) if unseen and new[name].divisible else new[name]
        one = effect(name, old[name], asked, measuring.value_of(after.draft, name, f"commit {after.short}"))
        found.append(replace(one, asked=len({*old[name].ids, *new[name].ids})))
    return found


def effect(
    name: str,
    before: Measurement,
    after: Measurement,
    value_of: ValueOf | None,
    seed: int = 0,
) -> Effect:
    """Compare two answers. The interval is the percentile bootstrap over example ids (Efron & Tibshirani 1993, §13.3): each
    draw takes examples with replacement, the same ones of both, and makes both values anew of their sums."""
    if (before.metric, before.higher_is_better) != (after.metric, after.higher_is_better):
        same = before.metric == after.metric  # then the directions differ
        metrics = [f"{m.metric} {'↑' if m.higher_is_better else '↓'}" if same else m.metric for m in (before, after)]
        return Effect(name, " → ".join(metrics), after.higher_is_better, before.value, after.value, comparable=False)
    made = name, after.metric, after.higher_is_better
    shared = sorted(set(before.ids) & set(after.ids))
    asked = len({*before.ids, *after.ids})
    if value_of is None or len(shared) < 2 or before.columns.keys() != after.columns.keys():
        return Effect(*made, before.value, after.value, examples=len(shared), asked=asked)
    old, new = before.of(shared), after.of(shared)
    values = drawn_values([old.columns, new.columns], value_of, seed)
    low, high = interval(values[:, 1] - values[:, 0])
    return Effect(*made, old.made(value_of), new.made(value_of), low, high, len(shared), asked)
