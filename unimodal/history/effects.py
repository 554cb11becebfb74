"""What a change of the weights did to each task, with an interval from the examples that both were asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unimodal.evaluation.bootstrap import ValueOf, drawn_values, interval
from unimodal.evaluation.evaluation import Streamed
from unimodal.history.measure import Measurement, Measuring
from unimodal.ledger import Commit


@dataclass(frozen=True)
class Effect:
    """One evaluation before and after. low, high: the 95 % interval of after − before; NaN where no examples are shared."""

    name: str
    metric: str
    higher_is_better: bool
    before: float
    after: float
    low: float = math.nan
    high: float = math.nan
    examples: int = 0

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def gain(self) -> float:
        """The change, counted so that more is better."""
        return self.change if self.higher_is_better else -self.change

    @property
    def verdict(self) -> str:
        """ "gained" or "lost" where the interval leaves 0 out; "same" for an equal value, else "unclear"."""
        if self.before == self.after and not (self.low < 0 < self.high):
            return "same"
        if math.isnan(self.change):
            return "lost" if math.isnan(self.after) else "unclear"
        if math.isnan(self.low) or self.low <= 0 <= self.high:
            return "unclear"
        return "gained" if self.gain > 0 else "lost"


def effects(measuring: Measuring, before: Commit, after: Commit, *, ask: bool = True) -> list[Effect]:
    """Every evaluation that both commits have, asked of both; without `ask`, those that both were asked already."""
    if ask:
        names = [measuring.names(commit.draft, f"commit {commit.short}") for commit in (before, after)]
        shared = [name for name in names[1] if name in names[0]]
        old, new = (measuring.of_commit(commit, shared) for commit in (before, after))
    else:
        old, new = measuring.known(before), measuring.known(after)
    found = []
    for name in (name for name in new if name in old):
        evaluation = measuring.evaluation(after.draft, name, f"commit {after.short}")
        value_of = evaluation.value_of if isinstance(evaluation, Streamed) else None
        found.append(effect(name, old[name], new[name], value_of))
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
    made = name, after.metric, after.higher_is_better, before.value, after.value
    shared = set(before.ids) & set(after.ids)
    if value_of is None or len(shared) < 2 or before.columns.keys() != after.columns.keys():
        return Effect(*made)
    ids = sorted(shared)
    tables = []
    for one in (before, after):
        place = {example: i for i, example in enumerate(one.ids)}
        chosen = np.asarray([place[example] for example in ids])
        tables.append({name: values[chosen] for name, values in one.columns.items()})
    values = drawn_values(tables, value_of, seed)
    return Effect(*made, *interval(values[:, 1] - values[:, 0]), len(ids))
