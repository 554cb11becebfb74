"""The manifest of a commit: which tensors it has, and where they came from. Small JSON, one tensor a line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from unimodal.errors import UsageError

FORMAT = 1
CHUNK = 64 * 2**20  # bytes of one file in the store; a row of the first axis is never cut
# Types as safetensors spells them.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"I{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F64", "F32", "F16", "BF16")


class DamagedError(UsageError):
    """Something in a ledger is not what was written there. The message is one line that names it."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a commit."""

    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    chunks: tuple[str, ...]  # SHA-256 of the files that hold its rows, in order
    axes: tuple[str, ...] = ()  # logical axes, as the model names them

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def spelt(self) -> str:
        return f"{DTYPES[self.dtype]}{list(self.shape)}"

    def chunk_shapes(self) -> list[tuple[int, ...]]:
        """The shape of each file's part, by dtype and shape alone."""
        return chunk_shapes(self.shape, DTYPES[self.dtype].itemsize)


def chunk_shapes(shape: tuple[int, ...], itemsize: int) -> list[tuple[int, ...]]:
    """Cut the first axis so that a part has at most CHUNK bytes, or one row. What has no rows stays whole."""
    size = math.prod(shape) * itemsize
    if not shape or size <= CHUNK:
        return [shape]
    rows = max(1, CHUNK // (size // shape[0]))
    return [(min(rows, shape[0] - first), *shape[1:]) for first in range(0, shape[0], rows)]


@dataclass(frozen=True)
class Manifest:
    """What a commit says of its weights."""

    tensors: Mapping[str, Entry]
    source: str = "run"  # "run": of a workdir, whose names begin with parameters. and the like; or "huggingface"
    step: int | None = None  # of the run
    data: Mapping[str, Any] = field(default_factory=dict)  # task → its source, and how far it has been read
    made: Mapping[str, Any] = field(
        default_factory=dict
    )  # how it came about: a commit of what, a merge by which method

    def chunks(self) -> set[str]:
        return {chunk for entry in self.tensors.values() for chunk in entry.chunks}

    def as_bytes(self) -> bytes:
        """Indented JSON with one tensor a line, so that git shows and packs well what has changed."""
        head = {"format": FORMAT, "source": self.source, "step": self.step, "data": self.data, "made": self.made}
        lines = [f"{json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in head.items()]
        rows = [
            f"{json.dumps(name)}: "
            + json.dumps({"dtype": e.dtype, "shape": e.shape, "axes": e.axes, "chunks": e.chunks})
            for name, e in sorted(self.tensors.items())
        ]
        return ("{\n" + ",\n".join(lines) + ',\n"tensors": {\n' + ",\n".join(rows) + "\n}\n}\n").encode()

    @classmethod
    def parse(cls, text: bytes, where: str) -> Manifest:
        """Raises DamagedError for what is no manifest, and UsageError for one of a later format."""
        try:
            found = json.loads(text)
            if (number := found["format"]) != FORMAT:
                raise UsageError(f"{where} is of format {number}, which this version does not read")
            tensors = {str(name): _entry(row) for name, row in found["tensors"].items()}
            return cls(tensors, found["source"], found["step"], found["data"], found["made"])
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"{where} is no manifest of a commit: {type(error).__name__} {error}") from error
        except UsageError:
            raise
        except ValueError as error:
            raise DamagedError(f"{where} is no manifest of a commit: {error}") from error


def _entry(row: Mapping[str, Any]) -> Entry:
    entry = Entry(row["dtype"], tuple(row["shape"]), tuple(row["chunks"]), tuple(row["axes"]))
    whole = all(type(size) is int and size >= 0 for size in entry.shape)
    if entry.dtype not in DTYPES or not whole or not all(re.fullmatch("[0-9a-f]{64}", c) for c in entry.chunks):
        raise ValueError(f"a tensor of {row}"[:200])
    if len(entry.chunks) != len(entry.chunk_shapes()):
        raise ValueError(f"a tensor of {entry.spelt} in {len(entry.chunks)} files")
    return entry
