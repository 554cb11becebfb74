"""Scores that are made of sums: bits per byte, error counts, accuracies among distractors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from unimodal.evaluation.evaluation import Rows, Streamed


@dataclass
class Sums:
    """Tally that adds up each array over its examples."""

    finish: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]]  # sums by name → score
    sums: dict[str, np.ndarray] = field(default_factory=dict)  # so far, in float64
    examples: int = 0  # so far

    def add(self, rows: Rows) -> None:
        self.examples += len(rows["index"])
        for name, value in rows.items():
            if np.issubdtype(value.dtype, np.floating):
                # In float64: a million float32 terms would lose the last of them.
                self.sums[name] = self.sums.get(name, np.float64(0)) + value.astype(np.float64).sum(axis=0)

    def score(self) -> dict[str, float]:
        found = self.finish({**self.sums, "examples": np.asarray(self.examples, np.float64)})
        return {name: float(value) for name, value in found.items()}


@dataclass(frozen=True, kw_only=True)
class Summed(Streamed):
    """Adds up the float rows of `predict` (integer rows are for samples only) and scores the sums."""

    metric: str  # name and unit of the value
    higher_is_better: bool  # direction of the metric
    finish: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]]  # sums by name, and "examples" → score
    ratio: tuple[str, str] | None = None  # where rows have vectors, the two whose sums' ratio is the value
    unit: float = 1.0  # of the value: what the ratio is multiplied by

    def tally(self) -> Sums:
        return Sums(self.finish)

    def columns(self, rows: Rows) -> dict[str, np.ndarray] | None:
        if self.ratio is not None:
            return {name: rows[name] for name in self.ratio if name != "examples"}
        found = {name: value for name, value in rows.items() if np.issubdtype(value.dtype, np.floating)}
        return found if all(value.ndim == 1 for value in found.values()) else None

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        if self.ratio is not None:
            return self.unit * float(sums[self.ratio[0]] / sums[self.ratio[1]])
        return float(self.finish(sums)["value"])
