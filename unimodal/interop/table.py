"""Rows: which tensor of a published checkpoint is which parameter of ours, and how its dimensions are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Row:
    """One source tensor ↔ one parameter of ours, or a part of either.

    Reading takes the part, permutes the dimensions, and reshapes to ours.
    """

    source: str  # its name there; `{layer}` stands for the number of the layer
    ours: str  # dotted path in the model, without layer numbers
    permute: tuple[int, ...] | None = None  # order of the dimensions there that gives ours; None: as it is
    part: tuple[int, int] = (0, 1)  # (i, n): part i of n equal parts along `axis`
    axis: int = 0  # that parts are cut along
    rows: tuple[int, int] | None = None  # the tensor is only these rows of ours; None: all
    optional: bool = False  # may be missing there, and is then as initialised
    tied: bool = False  # a second copy of a tensor that another row reads: it must be equal, and is written again
    first: int = 0  # the first layer that has it there
    before: float = 0.0  # what ours is in the layers before that

    def read(self, value: np.ndarray) -> np.ndarray:
        """The source tensor with our order of dimensions (a view); its shape still may have to be split or joined."""
        index, count = self.part
        if count > 1:
            size = value.shape[self.axis] // count
            value = value[(slice(None),) * self.axis + (slice(index * size, (index + 1) * size),)]
        return value if self.permute is None else value.transpose(self.permute)

    def read_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape that `read` gives, or None if the tensor has not these dimensions."""
        count = self.part[1]
        if (self.permute is not None and len(self.permute) != len(shape)) or (count > 1 and self.axis >= len(shape)):
            return None
        if count > 1 and shape[self.axis] % count:
            return None
        part = shape[: self.axis] + (shape[self.axis] // count,) + shape[self.axis + 1 :] if count > 1 else shape
        return part if self.permute is None else tuple(part[i] for i in self.permute)

    def write(self, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Ours as (a part of) the source tensor of `shape`: what `read` undoes."""
        count = self.part[1]
        part = shape[: self.axis] + (shape[self.axis] // count,) + shape[self.axis + 1 :] if count > 1 else shape
        if self.permute is None:
            return value.reshape(part)
        permuted = tuple(part[i] for i in self.permute)
        return value.reshape(permuted).transpose(np.argsort(self.permute))


def fits(found: Sequence[int], wanted: Sequence[int]) -> bool:
    """True if `wanted` only splits or joins neighbouring dimensions of `found`, so that reshaping cannot mix them up."""
    a, b = [n for n in found if n != 1], [n for n in wanted if n != 1]
    i = j = 0
    while i < len(a) and j < len(b):
        left, right, taken_left, taken_right = a[i], b[j], 1, 1
        while left != right:
            if left < right and i + taken_left < len(a):
                left, taken_left = left * a[i + taken_left], taken_left + 1
            elif right < left and j + taken_right < len(b):
                right, taken_right = right * b[j + taken_right], taken_right + 1
            else:
                return False
        if taken_left > 1 and taken_right > 1:
            return False
        i, j = i + taken_left, j + taken_right
    return i == len(a) and j == len(b)


TRANSPOSE = (1, 0)  # torch's Linear keeps [outputs, inputs]


def same(source: str, ours: str, **options: object) -> Row:
    """The same order of dimensions on both sides."""
    return replace(Row(source, ours), **options)  # pyright: ignore[reportArgumentType]


def linear(source: str, ours: str, *, bias: bool = True) -> tuple[Row, ...]:
    """torch's Linear ↔ ours: weight [outputs, inputs] ↔ kernel [*inputs, *outputs]."""
    kernel = Row(f"{source}.weight", f"{ours}.kernel", permute=TRANSPOSE)
    return (kernel, Row(f"{source}.bias", f"{ours}.bias")) if bias else (kernel,)


def norm(source: str, ours: str, *, bias: bool = True) -> tuple[Row, ...]:
    scale = Row(f"{source}.weight", f"{ours}.scale")
    return (scale, Row(f"{source}.bias", f"{ours}.bias")) if bias else (scale,)


def fused(
    source: str, ours: Sequence[str], *, permute: tuple[int, ...] | None = TRANSPOSE, bias: bool = True
) -> tuple[Row, ...]:
    """One matrix there that is several of ours, side by side along its outputs."""
    rows, count = [], len(ours)
    outputs = 0 if permute else 1
    for i, path in enumerate(ours):
        rows.append(Row(f"{source}.weight", f"{path}.kernel", permute=permute, part=(i, count), axis=outputs))
        if bias:
            rows.append(Row(f"{source}.bias", f"{path}.bias", part=(i, count)))
    return tuple(rows)
