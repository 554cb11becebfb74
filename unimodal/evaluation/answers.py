"""Answers to prompts: how likely the true one is, and how often the model writes just that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from unimodal.evaluation.classification import share_right
from unimodal.evaluation.evaluation import Rows
from unimodal.evaluation.likelihood import bits_per_byte
from unimodal.evaluation.summed import Summed, Sums

METRICS = ("bits per byte", "exact match")

Matches = Callable[[np.ndarray, np.ndarray], bool]
"""The ids that were written, the true ones → whether they are the same answer."""


@dataclass(kw_only=True)
class Answers(Sums):
    """Adds up the likelihood of true answers, and counts those that were written. `main` of METRICS is the value.

    Rows: those of `likelihood_rows`, the ids `made`, the `ids` of a prompt of `length` and its answer, and whether that
    answer is `whole`. One that was cut cannot be written, so it counts as wrong.
    """

    matches: Matches  # what was written and the true answer → whether they agree
    main: str  # which of METRICS is the value
    right: list[bool] = field(default_factory=list)  # whether each answer so far agrees
    cut: int = 0  # true answers that are not whole

    def add(self, rows: Rows) -> None:
        super().add(rows)
        names = ("made", "ids", "length", "tokens", "whole")
        for made, ids, start, count, whole in zip(*(rows[n] for n in names), strict=True):
            self.right.append(bool(whole) and self.matches(made, ids[start : start + int(count)]))
            self.cut += not whole

    def score(self) -> dict[str, float]:
        found = super().score()
        # A model whose numbers are NaN writes something all the same.
        right = math.nan if math.isnan(found["value"]) else sum(self.right) / self.examples
        scores = {"bits per byte": found.pop("value"), "exact match": right}
        value = scores.pop(self.main)
        found |= {"references_cut": float(self.cut)} if self.cut else {}
        return {"value": value, **{name.replace(" ", "_"): v for name, v in scores.items()}, **found}


@dataclass(frozen=True, kw_only=True)
class Answered(Summed):
    """Scores what is written after prompts. `predict` gives the rows of `Answers`, and `metric` is one of METRICS."""

    matches: Matches  # what was written and the true answer → whether they agree
    finish: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]] = bits_per_byte  # of the likelihood's sums

    def tally(self) -> Answers:
        return Answers(finish=self.finish, matches=self.matches, main=self.metric)

    def columns(self, rows: Rows) -> dict[str, np.ndarray] | None:
        return None if self.metric == "exact match" else super().columns(rows)

    def columns_of(self, tally: Answers) -> dict[str, np.ndarray] | None:
        return None if math.isnan(tally.score()["value"]) else {"correct": np.asarray(tally.right, np.float64)}

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        return share_right(sums) if self.metric == "exact match" else super().value_of(sums)
