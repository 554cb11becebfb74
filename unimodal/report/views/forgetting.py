"""The score of every task after each of them, as a table in colours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unimodal.report.views.affinity import AGREE, DISAGREE, STRONGEST

NUMBERS = ("average", "backward_transfer", "forward_transfer", "forgetting")


def forgetting_view(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `continual.matrix` gives → rows of cells. Colours compare a score with the task's before training: green is better,
    red worse, each by its share of the task's largest difference."""
    tasks, matrix, before = found["tasks"], found["matrix"], found["untrained"]
    signs = [1 if higher else -1 for higher in found["higher_is_better"]]
    columns = range(len(tasks))
    largest = [max((abs(row[j] - before[j]) for row in matrix if math.isfinite(row[j])), default=0) for j in columns]
    rows = [{"task": "before", "cells": [_cell(value, 0.0, own=False) for value in before]}]
    for i, task in enumerate(tasks):
        gains = [signs[j] * (matrix[i][j] - before[j]) / (largest[j] or 1) for j in columns]
        cells = [_cell(matrix[i][j], gains[j], own=i == j) for j in columns]
        rows.append({"task": f"after {task}", "cells": cells})
    numbers = {name.replace("_", " "): _text(found[name]) for name in NUMBERS}
    metrics = found["metric"] if len(set(found["metric"])) > 1 else [found["metric"][0]] * len(tasks)
    return {"tasks": list(zip(tasks, metrics, strict=True)), "rows": rows, "numbers": numbers}


def _cell(value: float, gain: float, *, own: bool) -> dict[str, Any]:
    shade = min(1.0, abs(gain)) * STRONGEST if math.isfinite(gain) else 0.0
    return {"text": _text(value), "colour": f"rgb({AGREE if gain >= 0 else DISAGREE} / {shade:.2f})", "own": own}


def _text(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else "NaN"
