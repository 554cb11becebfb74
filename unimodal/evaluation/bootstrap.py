"""How far a score would move with other examples: the percentile bootstrap (Efron & Tibshirani 1993, §13.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

DRAWS = 2000
BLOCK = 64  # draws at a time
GROUPS = 10_000  # beyond so many examples, groups of them are drawn

Columns = Mapping[str, np.ndarray]
"""Numbers of each example [N], by name."""

ValueOf = Callable[[Mapping[str, np.ndarray]], float]
"""The sums of such numbers, and the count "examples" → the value of a metric."""


def drawn_values(tables: Sequence[Columns], value_of: ValueOf, seed: int = 0) -> np.ndarray:
    """The values [draws,tables] of examples that are drawn with replacement, in each draw the same ones of every table.

    Row i of every table is of the same example.
    """
    rng, names = np.random.default_rng(seed), sorted(tables[0])
    arrays = [np.stack([np.asarray(table[name], np.float64) for name in names], axis=1) for table in tables]
    arrays = [np.concatenate([array, np.ones((len(array), 1))], axis=1) for array in arrays]
    if (count := len(arrays[0])) > GROUPS:
        order, first = rng.permutation(count), np.linspace(0, count, GROUPS, endpoint=False).astype(np.int64)
        arrays, count = [np.add.reduceat(array[order], first, axis=0) for array in arrays], GROUPS
    found = []
    for begin in range(0, DRAWS, BLOCK):
        draws = rng.multinomial(count, np.full(count, 1 / count), size=min(BLOCK, DRAWS - begin)).astype(np.float64)
        sums = [draws @ array for array in arrays]
        for i in range(len(draws)):
            found.append([value_of(dict(zip([*names, "examples"], one[i], strict=True))) for one in sums])
    return np.asarray(found)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of values; NaN where one of them is."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
