"""Batches from one process to another: large arrays are written into memory once, and the other process maps it.

The memory has no name and no file: it is gone when nobody has it open, whoever is killed. Where the system has none of the kind
(`memfd_create`, Linux), batches are sent as they are.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
from collections.abc import Mapping
from multiprocessing import reduction
from typing import Any

import numpy as np

_LEAST = 1 << 16  # bytes from which an array is worth it
_ALIGNED = 64  # bytes; JAX uses arrays that begin so without a copy


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an array lies."""

    begin: int  # byte
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Handed:
    """A batch under way: arrays, and the places of those that lie in the memory."""

    parts: dict[str, Any]
    memory: Any  # multiprocessing's DupFd


def handed(batch: Mapping[str, np.ndarray]) -> Any:
    """What to send for a batch; `taken` gives the batch for it."""
    large = [name for name, array in batch.items() if array.nbytes >= _LEAST and not array.dtype.hasobject]
    if not large or not hasattr(os, "memfd_create"):
        return batch
    parts: dict[str, Any] = dict(batch)
    memory = os.memfd_create("batch")
    try:
        with os.fdopen(memory, "wb", closefd=False) as file:
            for name in large:
                array = np.ascontiguousarray(batch[name])
                begin = file.seek(-(-file.tell() // _ALIGNED) * _ALIGNED)
                parts[name] = _Place(begin, array.shape, array.dtype)
                file.write(array.data)
        return Handed(parts, reduction.DupFd(memory))
    finally:
        os.close(memory)


def taken(made: Any) -> Any:
    """The batch that another process handed over. Raises OSError or EOFError where that process is gone."""
    if not isinstance(made, Handed):
        return made
    memory = made.memory.detach()
    try:
        mapped = mmap.mmap(memory, 0)
    finally:
        os.close(memory)
    return {name: _array(mapped, part) if isinstance(part, _Place) else part for name, part in made.parts.items()}


def _array(mapped: mmap.mmap, place: _Place) -> np.ndarray:
    found = np.frombuffer(mapped, place.dtype, math.prod(place.shape), place.begin)  # which keeps the memory
    return found.reshape(place.shape)
