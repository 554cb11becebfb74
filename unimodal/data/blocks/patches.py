"""Pictures of several sizes in one row of patches, each in its own proportions (Dehghani 2023, "Patch n' Pack")."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unimodal.data.blocks.images import OBVIOUS, Images, Picture
from unimodal.data.blocks.inputs import Inputs, find_column
from unimodal.data.blocks.labels import Labels
from unimodal.data.cache import cached
from unimodal.data.dataset import Dataset, Source
from unimodal.data.filling import Packing, Together, filled
from unimodal.data.pictures import picture_size
from unimodal.data.shares import refuse_weights
from unimodal.data.skipped import LEDGER, Where
from unimodal.data.spec import STAND_IN, ArraySpec
from unimodal.data.values import id_at
from unimodal.errors import RecordError, UsageError

logger = logging.getLogger(__name__)


def fitted_grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches, at most `most` in all, of a picture in its own proportions. It is made smaller where it has
    more, never larger, and what is left of a patch goes."""
    shrink = min(1.0, math.sqrt(most * patch * patch / (height * width)))
    rows, columns = (max(1, int(side * shrink / patch + 1e-6)) for side in (height, width))
    return (min(rows, most), 1) if columns == 1 else (1, min(columns, most)) if rows == 1 else (rows, columns)


@dataclasses.dataclass(frozen=True)
class PatchRows:
    """Rows of patches, each of several pictures.

    Examples have `patches` [T,patch·patch·channels]; of each of the T places the `segment` (1, 2, … by picture, 0 for
    padding), the `position` within it, the `register` (1, 2, … for the learned tokens before the patches, 0 for a patch) and
    the `place`: row and column of the patch, and rows and columns of its picture; and a `label` for each picture, -1 where
    there is none. As evaluations take them, one a row, the `label` is a number.
    """

    source: str  # a data source
    images: Images  # how pictures are read and changed
    labels: Labels  # their classes
    pack: Packing  # how long rows are
    patch: int  # side of a patch in pixels
    channels: int  # of a pixel
    grid: tuple[int, int]  # of the tokenizer: a picture has no more patches than this
    registers: int  # learned tokens before each picture's patches
    open_split: Callable[[str], Source]  # the records of a split

    @property
    def longest(self) -> int:
        """Tokens of a picture, at most."""
        return self.registers + math.prod(self.grid)

    def inputs(self, single: bool = False) -> Inputs:
        """Rows of training. single: one picture a row, as evaluations take them."""
        length, count = (self.longest, 1) if single else (int(self.pack.row), self.pack.most)
        if length < self.longest:
            raise UsageError(f"pack.row={length} has no room for a picture of {self.longest} tokens")
        low, high = self.images.bounds
        spec = {
            "patches": ArraySpec((length, self.patch * self.patch * self.channels), np.float32, low, high),
            "segment": ArraySpec((length,), np.int32, 1, 2),
            "position": ArraySpec((length,), np.int32, 0, length),
            "register": ArraySpec((length,), np.int32, 0, self.registers + 1),
            "place": ArraySpec((length, 4), np.int32, 1, 2),
            "label": ArraySpec(() if single else (count,), np.int32, 0, self.labels.size(self.source)),
        }

        def dataset(split: str) -> Dataset:
            if split == "train":
                self.labels.check(self.source)
            return self._dataset(split, length, 0 if single else count)

        return Inputs(spec, dataset)

    def _dataset(self, split: str, length: int, count: int) -> Dataset:
        opened, where = self.open_split(split), Where(self.source, split)
        refuse_weights(opened, "rows of several pictures")
        grids = self.grids(opened, where)
        lengths = [0 if grid is None else self.registers + math.prod(grid) for grid in grids]
        rows: list[list[int]]
        if count:
            rows = filled(lengths, length, most=count, fit=self.pack.fit)
            share = sum(lengths) / max(1, length * len(rows))
            logger.info("%s: %d pictures in %d rows, %.1f %% filled", where, len(lengths), len(rows), 100 * share)
        else:  # every picture keeps its place in the split; the next one stands in for what cannot be read
            known = next((grid for grid in grids if grid is not None), self.grid)
            grids, rows = [known if grid is None else grid for grid in grids], [[i] for i in range(len(grids))]
        read = functools.partial(self._read, at_least=self.images.at_least(self._size(self.grid)))
        together = Together(cached(opened, read, where=where), tuple(map(tuple, rows)))

        def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
            made = [
                self._picture(one["picture"], self._fitting(one, grids[place]), rng, split == "train")
                for one, place in zip(record["records"], record["places"], strict=True)
            ]
            row = joined_row(made, length)
            numbers = [one["label"] for one in record["records"]]
            label = np.array([*numbers, *[-1] * (count - len(numbers))] if count else numbers[0], np.int32)
            return {**row, "label": label}

        return Dataset(together, example)

    def grids(self, source: Source, where: Where) -> list[tuple[int, int] | None]:
        """Rows and columns of each record's picture, by its file's header; None for what cannot be read, which is listed."""
        found: list[tuple[int, int] | None] = []
        for index in range(len(source)):
            name = None
            try:
                record = source[index]
                name = str(record["id"])
                size = picture_size(record[find_column(record, self.images.column, OBVIOUS, "a picture")], name)
            except RecordError as error:
                LEDGER.note(where, name or id_at(source, index), error, len(source))
                found.append(None)
                continue
            LEDGER.looked(where)
            found.append(fitted_grid(*size, self.patch, math.prod(self.grid)))
        return found

    def alone(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The row of one picture, without chance and without its label."""
        picture = self.images.read(record, at_least=self.images.at_least(self._size(self.grid)))
        grid = fitted_grid(picture.shape[0], picture.shape[1], self.patch, math.prod(self.grid))
        return joined_row([self._picture(picture, grid, np.random.default_rng(0), False)], self.longest)

    def _read(self, record: Mapping[str, Any], at_least: tuple[int, int]) -> dict[str, Any]:
        picture = self.images.open(record, at_least=at_least)
        return {"id": record["id"], "picture": picture, "label": self.labels.number(self.source, record)}

    def _size(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid[0] * self.patch, grid[1] * self.patch

    def _fitting(self, record: Mapping[str, Any], planned: tuple[int, int] | None) -> tuple[int, int]:
        """The grid planned for a place of a row. What stands in there keeps its own proportions, in as many patches at most."""
        assert planned is not None
        if not record.get(STAND_IN):
            return planned
        width, height = record["picture"].size
        return fitted_grid(height, width, self.patch, math.prod(planned))

    def _picture(
        self, picture: Picture, grid: tuple[int, int], rng: np.random.Generator, training: bool
    ) -> dict[str, np.ndarray]:
        pixels = self.images.made(picture, self._size(grid), rng, training)
        return picture_tokens(pixels[:, :, : self.channels], self.patch, self.registers)


def picture_tokens(pixels: np.ndarray, patch: int, registers: int) -> dict[str, np.ndarray]:
    """One picture [H,W,C] as the arrays of a row, without padding: its registers, then its patches, rows first."""
    height, width, channels = pixels.shape
    rows, columns = height // patch, width // patch
    cut = pixels.reshape(rows, patch, columns, patch, channels).transpose(0, 2, 1, 3, 4)
    count = registers + rows * columns
    patches = np.zeros((count, patch * patch * channels), pixels.dtype)
    patches[registers:] = cut.reshape(rows * columns, -1)
    register, place = np.zeros(count, np.int32), np.zeros((count, 4), np.int32)
    register[:registers] = np.arange(1, registers + 1)
    down, across = np.divmod(np.arange(rows * columns), columns)
    place[registers:, 0], place[registers:, 1] = down, across
    place[:, 2:] = rows, columns
    return {"patches": patches, "position": np.arange(count, dtype=np.int32), "register": register, "place": place}


def joined_row(pictures: list[dict[str, np.ndarray]], length: int) -> dict[str, np.ndarray]:
    """The arrays of several pictures one after another, padded to `length`, with their `segment`."""
    row = {name: np.zeros((length, *first.shape[1:]), first.dtype) for name, first in pictures[0].items()}
    row["segment"] = np.zeros(length, np.int32)
    row["place"][:, 2:] = 1  # a grid of nothing would be divided by
    start = 0
    for number, picture in enumerate(pictures, start=1):
        stop = start + len(picture["position"])
        for name, array in picture.items():
            row[name][start:stop] = array
        row["segment"][start:stop] = number
        start = stop
    return row
