"""Epochs of each source, as a pure function of the number of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimodal.data.weights import parts_of


def epochs_of(dataset: Any, examples: int) -> Mapping[str, float]:
    """Epochs after so many examples: `epoch`, or for joined sources with weights `epoch/0`, `epoch/1`, … in their order.

    To within one example of a part, as shares are kept at every moment (`weights.endless`).
    """
    parts = parts_of(getattr(dataset, "source", None))
    if not parts:
        return {"epoch": examples / len(dataset)}
    total = sum(weight for _, weight in parts)
    return {f"epoch/{i}": examples * weight / total / count for i, (count, weight) in enumerate(parts)}
