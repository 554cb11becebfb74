"""Pictures, as a task's config describes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.augment.erasing import random_erase
from unimodal.data.augment.randaugment import STRONGEST, rand_augment
from unimodal.data.blocks.inputs import Part, brought, find_column
from unimodal.data.image import Augmentation, center_crop, resize, to_float, to_uint8, with_shorter_side
from unimodal.data.pictures import decode_image
from unimodal.data.pipeline import ArraySpec
from unimodal.errors import UsageError

FILTERS = tuple(name.lower() for name in Image.Resampling.__members__)
OBVIOUS = ("image", "img", "picture", "photo", "pixels")


@dataclasses.dataclass(frozen=True)
class Images:
    """One picture per record, resized to what the tokenizer takes. Augmentation is for training only."""

    column: str = ""  # of the record; "": the first of image, img, picture, photo, pixels
    crop: tuple[float, float] = (1.0, 1.0)  # range of the random crop's area, as a share of the picture; (1, 1): none
    flip: float = 0.0  # probability of a mirror image
    shift: int = 0  # pixels, at most, each way; white comes in, which suits pictures on white
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of brightness, contrast and saturation
    randaugment: tuple[int, float] = (0, 9.0)  # how many operations, and their magnitude from 0 to 10 (Cubuk 2020)
    erase: float = 0.0  # probability that a rectangle is noise, in the end (Zhong 2020)
    mean: tuple[float, ...] = brought((0.5,))  # of pixels in [0, 1], per channel or one for all: (x - mean) / std
    std: tuple[float, ...] = brought((0.5,))  # of the same pixels
    # What is not cropped at random is resized to this, and its middle taken: (height, width) or (shorter side,). (): to
    # what the tokenizer takes, whatever the picture's proportions.
    resize: tuple[int, ...] = brought(())
    resample: str = brought("bicubic")  # how it is resized: nearest, box, bilinear, hamming, bicubic or lanczos

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3):
                raise UsageError(f"images.{name} must have one value or three, but is {values}")
        if len(self.resize) > 2 or min(self.resize, default=1) < 1:
            raise UsageError(f"images.resize must be (), a side or height and width, but is {self.resize}")
        if self.resample not in FILTERS:
            raise UsageError(f"images.resample must be one of {', '.join(FILTERS)}, but is {self.resample!r}")
        if min(self.std) <= 0:
            raise UsageError(f"images.std must be above 0, but is {self.std}")
        count, magnitude = self.randaugment
        if count < 0 or not 0 <= magnitude <= STRONGEST:
            raise UsageError(
                f"images.randaugment must be a number of operations and a magnitude up to 10, but is {count, magnitude}"
            )
        if not 0 <= self.erase <= 1:
            raise UsageError(f"images.erase is a probability, from 0 to 1, but is {self.erase}")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise UsageError(f"images.crop must be two shares, 0 < least <= most <= 1, but is {self.crop}")

    def part(self, size: tuple[int, int], channels: int = 3, name: str = "image") -> Part:
        """float32 `[*size, channels]` under `name`."""
        augment = Augmentation(size, scale=self.crop, flip=self.flip, shift=self.shift, jitter=self.jitter)

        def make(picture: np.ndarray, rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
            if not training or self.crop == (1, 1):
                picture = self.fitted(picture, size)
            if not training:
                return {name: self.to_float(picture)}
            picture = augment(picture, rng)
            if self.randaugment[0]:
                picture = np.asarray(rand_augment(Image.fromarray(picture), rng, *self.randaugment))
            pixels = self.to_float(picture)
            return {name: random_erase(pixels, rng, self.erase) if self.erase else pixels}

        low = min((0 - m) / s for m, s in zip(self.mean, self.std, strict=False))
        high = max((1 - m) / s for m, s in zip(self.mean, self.std, strict=False))
        # The smallest crop still has every pixel that the model sees; what is larger would only fill the memory.
        scale = max(2.0, self.crop[0] ** -0.5)
        sides = (*self.resize, *self.resize)[:2] or size
        at_least = (math.ceil(scale * max(sides[0], size[0])), math.ceil(scale * max(sides[1], size[1])))
        read = partial(self.read, at_least=at_least)
        return Part({name: ArraySpec((*size, channels), np.float32, low, high)}, read, make)

    def fitted(self, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 `[H, W, 3]` at the size that the tokenizer takes, without chance."""
        to = self.resize or size
        height, width = to if len(to) == 2 else with_shorter_side(picture, to[0])
        return center_crop(resize(picture, height, width, resample=Image.Resampling[self.resample.upper()]), *size)

    def read(self, record: Mapping[str, Any], *, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """The record's picture, uint8 `[H, W, 3]`; much larger ones are shrunk, never below `at_least`."""
        found = find_column(record, self.column, OBVIOUS, "a picture")
        return decode_image(record[found], name=record["id"], at_least=at_least)

    def to_float(self, picture: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` as the model takes it."""
        return to_float(picture, mean=_whole(self.mean), std=_whole(self.std))

    def to_uint8(self, pixels: np.ndarray) -> np.ndarray:
        """Turn the model's values into a picture again, uint8 `[H, W, 3]`."""
        return to_uint8(pixels, mean=_whole(self.mean), std=_whole(self.std))


def _whole(values: tuple[float, ...]) -> Any:
    return values[0] if len(values) == 1 else values
