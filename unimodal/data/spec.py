"""What arrays an example has: their shapes, their dtypes, and a check of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from unimodal.errors import UsageError

STAND_IN = "_stand_in"
"""Marks a record that takes the place of one that cannot be used; its examples count nothing in an evaluation."""


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of one example, and the range of made-up data: `low <= value < high`; a bool is either."""

    shape: tuple[int, ...]  # without the batch dimension
    dtype: Any  # numpy's
    low: float = 0  # least value of made-up data
    high: float = 1  # bound of made-up data


def check_example(spec: Mapping[str, ArraySpec], example: Mapping[str, Any], name: str) -> None:
    """Raises UsageError, naming the first array of `example` that is missing, unexpected, or not as `spec` says."""
    for key, wanted in spec.items():
        if key not in example:
            raise UsageError(f"{name}: array {key!r} is missing; the example has {sorted(example)}")
        found = np.asarray(example[key])
        if found.shape != tuple(wanted.shape) or found.dtype != np.dtype(wanted.dtype):
            raise UsageError(
                f"{name}: array {key!r} should be {tuple(wanted.shape)} {np.dtype(wanted.dtype)}, "
                f"found {found.shape} {found.dtype}"
            )
    extra = sorted(set(example) - set(spec) - {STAND_IN})
    if extra:
        raise UsageError(f"{name}: array {extra[0]!r} is not in the spec, which has {sorted(spec)}")
