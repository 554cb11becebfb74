"""How many of the first n examples come from each of several sources, and which one comes next: pure functions of n.

Weights are numbers, or change with the step: `0:3,1000:1` is 3 at step 0, 1 from step 1,000 on, and in a straight line between.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from unimodal.errors import UsageError

_VALUE = re.compile(r"(?:(?P<times>[\d.]+)\*)?size(?:\^(?P<power>[\d.]+))?|(?P<number>[\d.eE+-]+)")


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight at some steps, ascending. Before the first it is the first one's, after the last the last one's."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def at(self, steps: np.ndarray) -> np.ndarray:
        """The weight at some steps, float64 [N]."""
        return np.interp(steps, self.steps, self.values)


def parse_weight(text: str, size: int, where: str) -> float | Weight:
    """A weight as a URI has it, of a source of `size` records.

    A value is a number, `size` (every record counts the same), `2*size` (twice as many epochs as where it is `size`) or
    `size^0.5` (a temperature of 1/0.5; Devlin 2019, multilingual BERT). `STEP:VALUE,STEP:VALUE` changes with the step.
    Raises UsageError for another text, for steps that do not ascend, and for a weight that is never above 0.
    """
    pairs = [part.rpartition(":") for part in text.split(",")]
    values = [_value(value, size, where, text) for _, _, value in pairs]
    if len(pairs) == 1 and not pairs[0][1]:
        if values[0] < 1e-9:
            raise UsageError(f"{where}: weight={text} should be above 0; leave the source out to give it none")
        return values[0]
    if not all(step.isdecimal() for step, _, _ in pairs):
        raise UsageError(f"{where}: weight={text} should be a value, or STEP:VALUE,STEP:VALUE with whole steps")
    steps = [int(step) for step, _, _ in pairs]
    if sorted(set(steps)) != steps:
        raise UsageError(f"{where}: the steps of weight={text} should ascend")
    if max(values) <= 0:
        raise UsageError(f"{where}: weight={text} is never above 0; leave the source out to give it none")
    return Weight(tuple(steps), tuple(values))


def _value(text: str, size: int, where: str, whole: str) -> float:
    match = _VALUE.fullmatch(text.strip())
    try:
        assert match is not None
        if match["number"] is not None:
            value = float(match["number"])
        else:
            value = float(match["times"] or 1) * size ** float(match["power"] or 1)
    except (AssertionError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"{where}: weight={whole} should be a number, size, 2*size, size^0.5 or STEP:VALUE,STEP:VALUE")
    return value


@dataclasses.dataclass(frozen=True)
class Constant:
    """Shares that stay. The first n examples are divided as `grain.MapDataset.mix` divides them, to within one a source."""

    weights: tuple[float, ...]

    def counts(self, examples: int) -> list[int]:
        """How many of the first `examples` come from each source."""
        scale = 100 / min(self.weights)  # grain counts weights in steps of 1 % of the smallest
        whole = [int(weight * scale) for weight in self.weights]
        found, left, remaining = [], examples, sum(whole)
        for part in whole:
            others = left * (remaining - part) // remaining
            found.append(left - others)
            left, remaining = others, remaining - part
        return found


class Changing:
    """Shares that change with the step.

    At each step that a weight names, shares are weights over their sum; between, each moves in a straight line. So the
    number of a source's examples among the first n is a piecewise quadratic A(n) in closed form. Example k of a source is
    due where A = k + ½, and examples come in the order in which they are due: after n of them no source is further than
    one from its A(n).
    """

    def __init__(self, weights: Sequence[float | Weight], batch: int):
        given = [w if isinstance(w, Weight) else Weight((0,), (w,)) for w in weights]
        steps = np.array(sorted({0, *(step for weight in given for step in weight.steps)}), np.float64)
        table = np.stack([weight.at(steps) for weight in given], axis=1)
        if (table.sum(axis=1) <= 0).any():
            bad = int(steps[np.argmin(table.sum(axis=1))])
            raise UsageError(f"the weights of all joined sources are 0 at step {bad}")
        self._begin = steps * batch  # examples before each piece
        self._share = table / table.sum(axis=1, keepdims=True)  # [pieces, sources] at its beginning
        length = np.diff(self._begin)
        self._slope = np.concatenate([np.diff(self._share, axis=0) / length[:, None], np.zeros((1, len(given)))])
        whole = (self._share[:-1] + self._share[1:]) / 2 * length[:, None]
        self._before = np.concatenate([np.zeros((1, len(given))), np.cumsum(whole, axis=0)])

    def ideal(self, examples: float) -> np.ndarray:
        """A(n) of each source, float64 [sources]."""
        piece = int(np.searchsorted(self._begin, examples, side="right")) - 1
        along = examples - self._begin[piece]
        return self._before[piece] + self._share[piece] * along + self._slope[piece] * along * along / 2

    def due(self, source: int, index: int) -> float:
        """The n at which example `index` of a source is due; infinity where it never is."""
        wanted = index + 0.5
        piece = int(np.searchsorted(self._before[:, source], wanted, side="left")) - 1
        rest = wanted - self._before[piece, source]
        share, slope = self._share[piece, source], self._slope[piece, source]
        bottom = share + math.sqrt(max(0.0, share * share + 2 * slope * rest))  # of the root that does not cancel
        return math.inf if bottom <= 0 else float(self._begin[piece] + 2 * rest / bottom)

    def stretch(self, first: int, count: int) -> list[tuple[int, int]]:
        """(source, its example) for examples `first` … `first + count - 1`."""
        sources = self._share.shape[1]
        taken = self._taken(first - sources)  # fewer than `first`: each is off by less than one
        waiting = [(self.due(i, k), i) for i, k in enumerate(taken)]
        found = []
        for place in range(sum(taken), first + count):
            _, source = min(waiting)
            if place >= first:
                found.append((source, taken[source]))
            taken[source] += 1
            waiting[source] = (self.due(source, taken[source]), source)
        return found

    def counts(self, examples: int) -> list[int]:
        """How many of the first `examples` come from each source."""
        counts = self._taken(examples - self._share.shape[1])
        begin = sum(counts)
        for source, index in self.stretch(begin, examples - begin):
            counts[source] = index + 1
        return counts

    def _taken(self, place: float) -> list[int]:
        """How many of each source are due up to a place."""
        found = []
        for source, about in enumerate(self.ideal(max(0.0, place))):
            count = int(about + 0.5)
            # Rounding must not decide it otherwise here than in the order: both go by `due`.
            while self.due(source, count) <= place:
                count += 1
            while count and self.due(source, count - 1) > place:
                count -= 1
            found.append(count)
        return found


def shares(weights: Sequence[float | Weight], batch: int) -> Constant | Changing:
    """The shares that weights mean, for batches of so many examples."""
    fixed = tuple(weight for weight in weights if not isinstance(weight, Weight))
    return Constant(fixed) if len(fixed) == len(weights) else Changing(weights, batch)


def parts_of(source: Any) -> tuple[tuple[int, float | Weight], ...]:
    """Records and weight of each part of a source, one part after another; () where every record counts the same."""
    return tuple(getattr(source, "parts", ()))


def refuse_weights(source: Any, what: str) -> None:
    """Raises UsageError for a source with weights, where `what` cannot keep them."""
    if parts_of(source):
        raise UsageError(f"the weights of joined sources cannot be kept in {what}: leave out ?weight=")
