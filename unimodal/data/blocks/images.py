"""Pictures, as a task's config describes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from unimodal.data.blocks.inputs import Part, find_column
from unimodal.data.image import Augmentation, resize, to_float, to_uint8
from unimodal.data.pictures import decode_image
from unimodal.data.pipeline import ArraySpec
from unimodal.errors import UsageError

OBVIOUS = ("image", "img", "picture", "photo", "pixels")


@dataclasses.dataclass(frozen=True)
class Images:
    """One picture per record, resized to what the tokenizer takes. Augmentation is for training only."""

    column: str = ""  # of the record; "": the first of image, img, picture, photo, pixels
    crop: tuple[float, float] = (1.0, 1.0)  # range of the random crop's area, as a share of the picture; (1, 1): none
    flip: float = 0.0  # probability of a mirror image
    shift: int = 0  # pixels, at most, each way; white comes in, which suits pictures on white
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of brightness, contrast and saturation
    mean: tuple[float, ...] = (0.5,)  # of pixels in [0, 1], per channel or one for all: (x - mean) / std
    std: tuple[float, ...] = (0.5,)  # of the same pixels

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3):
                raise UsageError(f"images.{name} must have one value or three, but is {values}")
        if min(self.std) <= 0:
            raise UsageError(f"images.std must be above 0, but is {self.std}")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise UsageError(f"images.crop must be two shares, 0 < least <= most <= 1, but is {self.crop}")

    def part(self, size: tuple[int, int], channels: int = 3, name: str = "image") -> Part:
        """float32 `[*size, channels]` under `name`."""
        augment = Augmentation(size, scale=self.crop, flip=self.flip, shift=self.shift, jitter=self.jitter)

        def make(picture: np.ndarray, rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
            return {name: self.to_float(augment(picture, rng) if training else resize(picture, *size))}

        low = min((0 - m) / s for m, s in zip(self.mean, self.std, strict=False))
        high = max((1 - m) / s for m, s in zip(self.mean, self.std, strict=False))
        # The smallest crop still has every pixel that the model sees; what is larger would only fill the memory.
        scale = max(2.0, self.crop[0] ** -0.5)
        at_least = (math.ceil(scale * size[0]), math.ceil(scale * size[1]))
        read = partial(self.read, at_least=at_least)
        return Part({name: ArraySpec((*size, channels), np.float32, low, high)}, read, make)

    def read(self, record: Mapping[str, Any], *, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """The record's picture, uint8 `[H, W, 3]`; much larger ones are shrunk, never below `at_least`."""
        found = find_column(record, self.column, OBVIOUS, "a picture")
        return decode_image(record[found], name=record["id"], at_least=at_least)

    def to_float(self, picture: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` as the model takes it."""
        return to_float(picture, mean=_whole(self.mean), std=_whole(self.std))

    def to_uint8(self, pixels: np.ndarray) -> np.ndarray:
        """What the model takes as a picture again, uint8 `[H, W, 3]`."""
        return to_uint8(pixels, mean=_whole(self.mean), std=_whole(self.std))


def _whole(values: tuple[float, ...]) -> Any:
    return values[0] if len(values) == 1 else values
