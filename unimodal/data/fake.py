"""Made-up batches of the right shapes, for runs without data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from unimodal.data.batches import BatchIterator
from unimodal.data.order import checked_seed
from unimodal.data.spec import ArraySpec
from unimodal.data.stacking import GlobalBatches, checked_rows


def fake_batches(
    spec: Mapping[str, ArraySpec], batch_size: int, seed: int, rows: Sequence[int] | None = None
) -> BatchIterator:
    """Make endless random batches of the right shapes and dtypes, within each spec's range.

    Rows and state are those of `train_batches`.
    """
    rows = checked_rows(batch_size, rows)
    fake = _FakeExamples(dict(spec))
    examples = grain.MapDataset.source(fake).random_map(fake.make, seed=checked_seed(seed))
    return iter(GlobalBatches(examples, batch_size, rows).to_iter_dataset(grain.ReadOptions(1, 2)))


@dataclasses.dataclass(frozen=True)
class _FakeExamples:
    spec: Mapping[str, ArraySpec]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": str(index)}

    def make(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {name: _fake_array(spec, rng) for name, spec in self.spec.items()}


def _fake_array(spec: ArraySpec, rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, spec.shape).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(int(spec.low), int(spec.high), spec.shape, dtype=dtype)
    values = rng.random(spec.shape, dtype=np.float32)
    return (spec.low + (spec.high - spec.low) * values).astype(dtype)
