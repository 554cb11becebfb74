"""R[i,j], the score of task j after task i has been learned, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from unimodal.training.sequence import InSequence

Curve = Sequence[tuple[int, float]]


def metrics(matrix: np.ndarray, untrained: Sequence[float], higher_is_better: Sequence[bool]) -> dict[str, float]:
    """R [T,T], and the scores before training [T] → numbers in the metric's unit, counted so that more is better but for
    `forgetting`.

    average_accuracy, backward_transfer and forward_transfer: Lopez-Paz & Ranzato 2017, equations 2-4. forgetting:
    Chaudhry 2018, §3.1, the mean over earlier tasks of the best score before the last task less the last one. Signs are
    turned where lower is better, except in the average.
    """
    sign = np.where(np.asarray(higher_is_better), 1.0, -1.0)
    gains, before = matrix * sign, np.asarray(untrained) * sign
    last, count = gains[-1], len(gains)
    earlier = range(count - 1)
    return {
        "average": float(matrix[-1].mean()),
        "backward_transfer": float(np.mean([last[i] - gains[i, i] for i in earlier])),
        "forward_transfer": float(np.mean([gains[i - 1, i] - before[i] for i in range(1, count)])),
        "forgetting": float(np.mean([gains[:-1, i].max() - last[i] for i in earlier])),
    }


def matrix_of(
    schedule: InSequence, scored: Mapping[str, Curve], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """R of a run, as plain values for results.json; None where the scores of a step are missing.

    scored: what each evaluation gave during training, as (step, value). results: by evaluation, as results.json has them.
    """
    names, rows = schedule.names, []
    for end in list(accumulate(schedule.steps))[:-1]:
        found = [dict(scored.get(name, ())).get(end) for name in names]
        if None in found:
            return None
        rows.append(found)
    rows.append([results[name]["value"] for name in names])
    table, before = np.asarray(rows, np.float64), [results[name]["details"]["untrained"] for name in names]
    ways = [results[name]["higher_is_better"] for name in names]
    what = {"tasks": list(names), "steps": list(schedule.steps), "metric": [results[n]["metric"] for n in names]}
    return {
        **what,
        "higher_is_better": ways,
        "matrix": table.tolist(),
        "untrained": before,
        **metrics(table, before, ways),
    }
