"""Affinity of tasks as a table in colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AGREE, DISAGREE = "46 125 90", "190 60 50"
"""Green and red, as CSS has them. Opacity says how much, so that text stays readable on a light and on a dark page."""

STRONGEST = 0.55  # opacity of a cosine of 1


def affinity_view(affinity: Mapping[str, Any]) -> dict[str, Any]:
    """Result of `training.affinity` → rows of cells with a text and a colour."""
    tasks = [str(task) for task in affinity["tasks"]]
    rows = []
    for i, task in enumerate(tasks):
        cells = [_cell(cosine, own=i == j) for j, cosine in enumerate(affinity["cosine"][i])]
        rows.append({"task": task, "cells": cells, "norm": affinity["norm"][i]})
    return {"tasks": tasks, "rows": rows, "batches": int(affinity["batches"])}


def _cell(cosine: float | None, *, own: bool) -> dict[str, Any]:
    if cosine is None or cosine != cosine:  # they share nothing, or a gradient is not a number
        return {"text": "–" if cosine is None else "NaN", "colour": "transparent", "own": own}
    shade = min(1.0, abs(cosine)) * STRONGEST
    colour = f"rgb({AGREE if cosine >= 0 else DISAGREE} / {shade:.2f})"
    return {"text": f"{cosine:+.2f}".replace("-", "−"), "colour": colour, "own": own}
