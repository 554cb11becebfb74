"""Several views of one picture, as a task's config describes them."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.augment.views import View
from unimodal.data.blocks.images import Images, Picture
from unimodal.data.blocks.inputs import Part, brought
from unimodal.data.spec import ArraySpec
from unimodal.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Views:
    """Views of one picture per record, drawn anew each time. By default those of SimCLR (Chen 2020, appendix A).

    `blur` and `solarise` have one value for each view; the last stands for those after it, and for small views. MoCo v3
    (after Grill 2020, table 6) has blur=(1.0, 0.1) and solarise=(0.0, 0.2). Small views show little of a picture at a
    lower resolution (multi-crop, Caron 2020, §3.2); the tokenizer must take them, by `resize=True`.
    """

    column: str = ""  # of the record; "": the first of image, img, picture, photo, pixels
    count: int = 2  # views of the size that the tokenizer takes
    crop: tuple[float, float] = (0.08, 1.0)  # range of a crop's area, as a share of the picture
    flip: float = 0.5  # probability of a mirror image
    # Most change of brightness, contrast, saturation (as shares) and hue (of the circle). On CIFAR-10 SimCLR halves them.
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_chance: float = 0.8  # probability that colours change at all
    grey: float = 0.2  # probability of a grey picture
    blur: tuple[float, ...] = (0.5,)  # probability of a blur, by view. On CIFAR-10 SimCLR has none
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # range of the blur's standard deviation, in pixels
    solarise: tuple[float, ...] = (0.0,)  # probability that pixels above the middle are inverted, by view
    small: int = 0  # how many small views
    small_size: tuple[int, int] = (96, 96)  # their height and width in pixels
    small_crop: tuple[float, float] = (0.05, 0.14)  # range of their area; SwAV's large views then have crop=(0.14, 1)
    mean: tuple[float, ...] = brought((0.5,))  # of pixels in [0, 1], per channel or one for all: (x - mean) / std
    std: tuple[float, ...] = brought((0.5,))  # of the same pixels

    def __post_init__(self) -> None:
        for name in ("crop", "small_crop"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise UsageError(f"views.{name} must be two shares, 0 < least <= most <= 1, but is {(low, high)}")
        if not 0 <= self.blur_sigma[0] <= self.blur_sigma[1]:
            raise UsageError(f"views.blur_sigma must be two numbers, 0 <= least <= most, but is {self.blur_sigma}")
        for name in ("flip", "jitter_chance", "grey", "blur", "solarise"):
            value = getattr(self, name)
            chances = value if isinstance(value, tuple) else (value,)
            if not chances or not all(0 <= chance <= 1 for chance in chances):
                raise UsageError(f"views.{name} is a probability, from 0 to 1, but is {value}")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise UsageError(f"views.jitter must be at least 0, and of hue at most 0.5, but is {self.jitter}")
        if self.count < 1 or self.small < 0:
            raise UsageError(f"views need count >= 1 and small >= 0, but have {self.count} and {self.small}")

    def part(self, size: tuple[int, int], channels: int = 3) -> Part:
        """float32 `views` [count, *size, 3], and `small_views` [small, *small_size, 3] if there are any."""
        if channels != 3:
            raise UsageError(f"views have 3 channels, but the tokenizer takes {channels}")
        if self.small and (self.small_size[0] > size[0] or self.small_size[1] > size[1]):
            raise UsageError(
                f"views.small_size {self.small_size[0]}x{self.small_size[1]} is larger than the tokenizer's image_size "
                f"{size[0]}x{size[1]}"
            )
        pixels = Images(column=self.column, mean=self.mean, std=self.std)
        kinds = {"views": self._views(self.count, size, self.crop)}
        if self.small:
            kinds["small_views"] = self._views(self.small, self.small_size, self.small_crop, first=self.count)

        def make(picture: Picture, rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
            # Also in evaluation, which asks whether two views of a picture find each other.
            whole = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
            return {
                name: pixels.to_float(np.stack([np.asarray(view(whole, rng)) for view in views]))
                for name, views in kinds.items()
            }

        def spec(views: tuple[View, ...]) -> ArraySpec:
            low, high = (pixels.to_float(np.full((1, 1, 3), value, np.uint8)) for value in (0, 255))
            return ArraySpec((len(views), *views[0].size, 3), np.float32, float(low.min()), float(high.max()))

        return Part({name: spec(views) for name, views in kinds.items()}, self._reader(pixels, size), make)

    def _views(self, count: int, size: tuple[int, int], crop: tuple[float, float], first: int = 0) -> tuple[View, ...]:
        colours: Any = dict(jitter=self.jitter, jitter_chance=self.jitter_chance, grey=self.grey)
        return tuple(
            View(
                size,
                crop,
                self.flip,
                **colours,
                blur=self.blur[min(i, len(self.blur) - 1)],
                blur_sigma=self.blur_sigma,
                solarise=self.solarise[min(i, len(self.solarise) - 1)],
            )
            for i in range(first, first + count)
        )

    def _reader(self, pixels: Images, size: tuple[int, int]) -> Any:
        """Pictures are kept so large that the smallest crop still has every pixel that the model sees."""
        needed = [max(size) * self.crop[0] ** -0.5]
        needed += [max(self.small_size) * self.small_crop[0] ** -0.5] if self.small else []
        side = math.ceil(max(needed))
        return partial(pixels.open, at_least=(side, side))
