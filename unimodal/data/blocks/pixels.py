"""Pictures as rows of colours, as a task's config describes them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from typing import Any

import numpy as np

from unimodal.data.blocks.images import Images
from unimodal.data.blocks.inputs import Part, brought
from unimodal.data.image import nearest_color
from unimodal.data.palette import PICTURES, PIXELS, fit_palette, palette_error
from unimodal.data.sources import open_source
from unimodal.data.spec import ArraySpec
from unimodal.errors import RecordError, UsageError

# A palette that is given may be so many times as far from the data as one of the data's own, and so many levels besides.
WORSE, LEVELS = 2.0, 16.0


@dataclasses.dataclass(frozen=True)
class Pixels(Images):
    """One picture per record as a row of numbers, in the order of reading: each pixel is its nearest colour in a palette."""

    count: int = 512  # colours in the palette, at most
    # Red, green and blue of each, from 0 to 255; (): those of k-means on training's pixels
    colours: tuple[int, ...] = brought(())

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.count >= 2:
            raise UsageError(f"pixels.count must be at least 2, but is {self.count}")
        if len(self.colours) % 3 or len(self.colours) > 3 * self.count or not all(0 <= c <= 255 for c in self.colours):
            raise UsageError(
                f"pixels.colours must be three numbers from 0 to 255 for each of at most {self.count} colours"
            )

    def palette(self, source: str) -> np.ndarray:
        """uint8 `[N, 3]`, N ≤ count. Reads the training data where the config gives no colours."""
        if self.colours:
            return np.asarray(self.colours, np.uint8).reshape(-1, 3)
        with _LOCK:  # several threads make examples; the first of them fits
            if source not in self._own:
                self._own[source] = _fitted(source, self.column, self.count)
            return self._own[source]

    @functools.cached_property
    def _own(self) -> dict[str, np.ndarray]:
        # It goes to workers, none of which fits one again.
        return {}

    def row(self, source: str, size: tuple[int, int], name: str = "ids") -> Part:
        """int32 `[height·width]` under `name`."""
        whole = self.part(size, 3, "image")

        def make(picture: np.ndarray, rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
            pixels = self.to_uint8(whole.make(picture, rng, training)["image"])
            return {name: nearest_color(pixels, self.palette(source)).reshape(-1)}

        spec = {name: ArraySpec((math.prod(size),), np.int32, 0, self.count)}
        return Part(spec, whole.read, make, lambda: self.check(source))

    def picture(self, source: str, ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 `[height, width, 3]` of ids `[height·width]`. A number that no colour has is the last one."""
        palette = self.palette(source)
        return palette[np.minimum(ids, len(palette) - 1)].reshape(*size, 3)

    def check(self, source: str) -> None:
        """Raises UsageError for colours in the config that were made for other data."""
        if not self.colours:
            self.palette(source)
            return
        pixels = _sampled(source, self.column)
        with _LOCK:
            fitted = _fitted(source, self.column, self.count)
        given, own = (palette_error(pixels, palette) for palette in (self.palette(source), fitted))
        if given > WORSE * own + LEVELS:
            raise UsageError(
                f"pixels.colours is a palette that was made for other data: pixels of {source} are {given:.1f} levels from "
                f"its colours, but {own:.1f} from those of a palette of their own; leave colours unset"
            )

    def learned(self, source: str, segments: str = "") -> dict[str, Any]:
        """The fields that the data filled in, with which a model can be used where the data is not."""
        return {"colours": self.palette(source).reshape(-1).tolist()}


_LOCK = threading.Lock()


@functools.cache
def _fitted(source: str, column: str, count: int) -> np.ndarray:
    return fit_palette(_sampled(source, column), count)


@functools.cache
def _sampled(source: str, column: str) -> np.ndarray:
    """uint8 `[P, 3]`: pixels of training pictures at even distances, always the same ones."""
    records, images, rng = open_source(source, "train"), Images(column=column), np.random.default_rng(0)
    found = []
    for place in np.unique(np.linspace(0, len(records) - 1, min(len(records), PICTURES)).astype(int)):
        with contextlib.suppress(RecordError):  # left out and listed by whoever trains on it
            pixels = images.read(records[int(place)]).reshape(-1, 3)
            found.append(pixels[rng.integers(0, len(pixels), PIXELS)])
    if not found:
        raise UsageError(f"{source} train: no picture of those that a palette is made of can be read")
    return np.concatenate(found)
