"""Epochs of each source, as a pure function of the number of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unimodal.data.shares import parts_of, shares


def epochs_of(dataset: Any, examples: int, batch: int = 1) -> Mapping[str, float]:
    """Epochs after so many examples in batches of `batch`: `epoch`, or for joined sources with weights `epoch/0`, `epoch/1`, …
    in their order. They count the examples that were drawn of each, exactly."""
    parts = parts_of(getattr(dataset, "source", None))
    if not parts:
        return {"epoch": examples / len(dataset)}
    counts = shares([weight for _, weight in parts], batch).counts(examples)
    return {f"epoch/{i}": count / size for i, (count, (size, _)) in enumerate(zip(counts, parts, strict=True))}
