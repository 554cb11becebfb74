"""What changed between two commits: norm, direction and effective rank of each tensor's change, one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unimodal.ledger.ledger import Commit
from unimodal.ledger.manifest import FLOATS

LARGEST_SIDE = 4096  # of a matrix whose effective rank is told: eigenvalues of more take minutes


@dataclass(frozen=True)
class Change:
    """The change of one tensor. kind: "changed", "added", "removed", or "reshaped", which has no numbers."""

    name: str
    kind: str
    spelt: str  # type and shape, as float32[3, 4]
    norm: float = math.nan  # ‖after − before‖
    relative: float = math.nan  # norm / ‖before‖
    cosine: float = math.nan  # between before and after
    rank: float | None = None  # effective rank of the change; None for vectors, whole numbers and large matrices


def changes(before: Commit, after: Commit, *, rank: bool = True) -> list[Change]:
    """Tensors that differ, the largest change first. Two tensors are in memory at a time; equal ones are not read."""

    def place(change: Change) -> tuple[float, str]:
        if change.kind != "changed":
            return math.inf, change.name
        return -math.inf if math.isnan(change.norm) else -change.norm, change.name

    return sorted(_changes(before, after, rank), key=place)


def _changes(before: Commit, after: Commit, rank: bool) -> Iterator[Change]:
    old, new = before.manifest.tensors, after.manifest.tensors
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            yield Change(name, "added" if name in new else "removed", (new.get(name) or old[name]).spelt)
        elif old[name].spelt != new[name].spelt:
            yield Change(name, "reshaped", f"{old[name].spelt} → {new[name].spelt}")
        elif old[name].chunks != new[name].chunks:
            yield _change(name, new[name].spelt, before.read(name), after.read(name), rank, new[name].dtype in FLOATS)


def _change(name: str, spelt: str, before: np.ndarray, after: np.ndarray, rank: bool, floating: bool) -> Change:
    difference = np.subtract(after, before, dtype=np.float32 if floating and before.itemsize <= 4 else np.float64)
    was, norm = norm_of(before), norm_of(difference)
    now = norm_of(after)
    cosine = dot_of(before, after) / (was * now) if was and now else math.nan
    ranked = effective_rank(difference) if rank and floating else None
    return Change(name, "changed", spelt, norm, norm / was if was else math.inf, cosine, ranked)


def norm_of(array: np.ndarray) -> float:
    return math.sqrt(dot_of(array, array))


def dot_of(a: np.ndarray, b: np.ndarray, piece: int = 1 << 20) -> float:
    """Inner product in float64, a piece at a time: a copy of the whole in float64 would double the memory."""
    a, b = a.reshape(-1), b.reshape(-1)
    parts = (slice(i, i + piece) for i in range(0, a.size, piece))
    return math.fsum(float(np.dot(a[p].astype(np.float64), b[p].astype(np.float64))) for p in parts)


def effective_rank(array: np.ndarray) -> float | None:
    """exp of the entropy of the singular values, each divided by their sum (Roy & Vetterli 2007), of the matrix
    [first axes, last axis]; None for what is no matrix, or has no side of at most LARGEST_SIDE. 0 for no change."""
    if array.ndim < 2 or not array.size:
        return None
    matrix = array.reshape(-1, array.shape[-1])
    matrix = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix  # tall
    if matrix.shape[1] < 2 or matrix.shape[1] > LARGEST_SIDE:
        return None
    gram = np.zeros((matrix.shape[1], matrix.shape[1]))
    rows = max(1, (1 << 20) // matrix.shape[1])
    for first in range(0, matrix.shape[0], rows):
        part = matrix[first : first + rows].astype(np.float64)
        gram += part.T @ part
    if not np.isfinite(gram).all():
        return math.nan
    # Singular values below the rounding of the product are noise.
    squares = np.linalg.eigvalsh(gram)
    squares = squares[squares > squares.max(initial=0) * 1e-14]
    if not squares.size:
        return 0.0
    share = np.sqrt(squares) / np.sqrt(squares).sum()
    return float(np.exp(-(share * np.log(share)).sum()))
