"""Pictures, as a task's config describes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.augment.erasing import random_erase
from unimodal.data.augment.randaugment import STRONGEST, rand_augment
from unimodal.data.blocks.inputs import Part, brought, find_column
from unimodal.data.image import Augmentation, center_crop, to_float, to_uint8, with_shorter_side
from unimodal.data.pictures import open_picture
from unimodal.data.spec import ArraySpec
from unimodal.data.stored import STORE
from unimodal.errors import UsageError

Picture = np.ndarray | Image.Image
"""A picture in uint8 [H,W,3], or Pillow's in RGB."""
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
    # a seed by which the pixels of every picture are put into another order, always the same one; 0: as they are
    permute: int = 0
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
        if self.permute < 0:
            raise UsageError(f"images.permute must be 0 or more, but is {self.permute}")
        if not 0 <= self.erase <= 1:
            raise UsageError(f"images.erase is a probability, from 0 to 1, but is {self.erase}")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise UsageError(f"images.crop must be two shares, 0 < least <= most <= 1, but is {self.crop}")

    def part(self, size: tuple[int, int], channels: int = 3, name: str = "image") -> Part:
        """float32 `[*size, channels]` under `name`."""

        def make(picture: Picture, rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
            return {name: self.made(picture, size, rng, training)}

        read = partial(self.open, at_least=self.at_least(size))
        return Part({name: ArraySpec((*size, channels), np.float32, *self.bounds)}, read, make)

    def made(self, picture: Picture, size: tuple[int, int], rng: np.random.Generator, training: bool) -> np.ndarray:
        """A picture as the model takes it: float32 `[*size, 3]`, augmented in training."""
        pixels = self._made(picture, size, rng, training)
        if not self.permute:
            return pixels
        order = _permutation(self.permute, pixels.shape[0] * pixels.shape[1])
        return pixels.reshape(len(order), -1)[order].reshape(pixels.shape)

    def _made(self, picture: Picture, size: tuple[int, int], rng: np.random.Generator, training: bool) -> np.ndarray:
        if not training or self.crop == (1, 1):
            picture = self.fitted(picture, size)
        if not training:
            return self.to_float(np.asarray(picture))
        augment = Augmentation(size, scale=self.crop, flip=self.flip, shift=self.shift, jitter=self.jitter)
        picture = augment(picture, rng)
        if self.randaugment[0]:
            picture = np.asarray(rand_augment(Image.fromarray(picture), rng, *self.randaugment))
        pixels = self.to_float(picture)
        return random_erase(pixels, rng, self.erase) if self.erase else pixels

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that a pixel becomes."""
        scales = list(zip(self.mean, self.std, strict=False))
        return min((0 - m) / s for m, s in scales), max((1 - m) / s for m, s in scales)

    def at_least(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size down to which a picture may be shrunk before it is cropped and resized to `size`."""
        # The smallest crop still has every pixel that the model sees; what is larger would only fill the memory.
        scale = max(2.0, self.crop[0] ** -0.5)
        sides = (*self.resize, *self.resize)[:2] or size
        return math.ceil(scale * max(sides[0], size[0])), math.ceil(scale * max(sides[1], size[1]))

    def fitted(self, picture: Picture, size: tuple[int, int]) -> np.ndarray:
        """uint8 `[H, W, 3]` at the size that the tokenizer takes, without chance."""
        to = self.resize or size
        height, width = to if len(to) == 2 else with_shorter_side(picture, to[0])
        whole = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        if whole.size != (width, height):
            whole = whole.resize((width, height), Image.Resampling[self.resample.upper()])
        return center_crop(np.asarray(whole), *size)

    def read(self, record: Mapping[str, Any], *, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """The record's picture, uint8 `[H, W, 3]`; much larger ones are shrunk, never below `at_least`."""
        return np.asarray(self.open(record, at_least=at_least))

    def open(self, record: Mapping[str, Any], *, at_least: tuple[int, int] | None = None) -> Image.Image:
        """`read` as a Pillow picture in RGB."""
        found = find_column(record, self.column, OBVIOUS, "a picture")
        value, decode = record[found], partial(open_picture, name=record["id"], at_least=at_least)
        if not STORE.size or not isinstance(value, bytes):
            return decode(value)
        return Image.fromarray(STORE.find(value, f"picture {at_least}", lambda: np.asarray(decode(value))))

    def to_float(self, picture: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` as the model takes it."""
        return to_float(picture, mean=_whole(self.mean), std=_whole(self.std))

    def to_uint8(self, pixels: np.ndarray) -> np.ndarray:
        """Turn the model's values into a picture again, uint8 `[H, W, 3]`."""
        return to_uint8(pixels, mean=_whole(self.mean), std=_whole(self.std))


@lru_cache(maxsize=16)
def _permutation(seed: int, count: int) -> np.ndarray:
    # Drawing one takes longer than all else that a small picture needs.
    return np.random.default_rng(seed).permutation(count)


def _whole(values: tuple[float, ...]) -> Any:
    return values[0] if len(values) == 1 else values
