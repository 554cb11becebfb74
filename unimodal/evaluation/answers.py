"""Answers to prompts: how likely the true one is, and how often the model writes just that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unimodal.evaluation.evaluation import Rows, Streamed
from unimodal.evaluation.likelihood import bits_per_byte
from unimodal.evaluation.summed import Sums

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
    right: int = 0  # answers that agree so far
    cut: int = 0  # true answers that are not whole

    def add(self, rows: Rows) -> None:
        super().add(rows)
        names = ("made", "ids", "length", "tokens", "whole")
        for made, ids, start, count, whole in zip(*(rows[n] for n in names), strict=True):
            self.right += bool(whole) and self.matches(made, ids[start : start + int(count)])
            self.cut += not whole

    def score(self) -> dict[str, float]:
        found = super().score()
        # A model whose numbers are NaN writes something all the same.
        right = math.nan if math.isnan(found["value"]) else self.right / self.examples
        scores = {"bits per byte": found.pop("value"), "exact match": right}
        value = scores.pop(self.main)
        found |= {"references_cut": float(self.cut)} if self.cut else {}
        return {"value": value, **{name.replace(" ", "_"): v for name, v in scores.items()}, **found}


@dataclass(frozen=True, kw_only=True)
class Answered(Streamed):
    """Scores what is written after prompts. `predict` gives the rows of `Answers`."""

    matches: Matches  # what was written and the true answer → whether they agree
    main: str  # which of METRICS is the value

    def tally(self) -> Answers:
        return Answers(finish=bits_per_byte, matches=self.matches, main=self.main)
