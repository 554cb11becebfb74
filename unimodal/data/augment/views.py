"""Steps that make another view of a picture: crop, mirror, other colours, grey, blur, solarise (Chen 2020, appendix A).

All of it takes and gives Pillow pictures in RGB, whose operations run in C and round as torchvision's do. Every function
draws on the generator it is given and on nothing else.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from unimodal.data.image import random_box


@dataclasses.dataclass(frozen=True)
class View:
    """The steps of one view. They run in the order of the fields."""

    size: tuple[int, int]  # height and width of the result, in pixels
    crop: tuple[float, float]  # range of the crop's area, as a share of the picture
    flip: float  # probability of a mirror image
    jitter: tuple[float, float, float, float]  # most change of brightness, contrast, saturation and hue
    jitter_chance: float  # probability that colours change at all
    grey: float  # probability of a grey picture
    blur: float  # probability of a blur
    blur_sigma: tuple[float, float]  # range of its standard deviation, in pixels of the result
    solarise: float  # probability that bright pixels are inverted

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        height, width = self.size
        box = random_box(picture.height, picture.width, rng, scale=self.crop)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
        flip, jitter, grey, blur, solarise = rng.random(5)
        if flip < self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if jitter < self.jitter_chance:
            picture = jittered(picture, rng, self.jitter)
        if grey < self.grey:
            picture = picture.convert("L").convert("RGB")
        if blur < self.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*self.blur_sigma)))
        if solarise < self.solarise:
            picture = ImageOps.solarize(picture)
        return picture


def jittered(picture: Image.Image, rng: np.random.Generator, most: tuple[float, float, float, float]) -> Image.Image:
    """Brightness, contrast and saturation times factors from [1 - x, 1 + x], and hue turned by [-x, x] of the circle.

    They come in an order that is drawn, too.
    """
    draws = rng.uniform(-1.0, 1.0, 4)
    for i in rng.permutation(4):
        if most[i]:
            change = float(draws[i] * most[i])
            picture = turned(picture, change) if i == 3 else _SCALED[i](picture, max(0.0, 1.0 + change))
    return picture


def brightened(picture: Image.Image, factor: float) -> Image.Image:
    """Every channel times the factor."""
    return Image.blend(Image.new("RGB", picture.size), picture, factor)


def contrasted(picture: Image.Image, factor: float) -> Image.Image:
    """Pixels moved from or to the mean grey of the picture."""
    mean = int(np.asarray(picture.convert("L")).mean() + 0.5)
    return Image.blend(Image.new("RGB", picture.size, (mean, mean, mean)), picture, factor)


def saturated(picture: Image.Image, factor: float) -> Image.Image:
    """Pixels moved from or to their own grey."""
    return Image.blend(picture.convert("L").convert("RGB"), picture, factor)


def turned(picture: Image.Image, share: float) -> Image.Image:
    """Hues turned by a share of the circle, in steps of 1/256."""
    hue, saturation, value = picture.convert("HSV").split()
    steps = round(share * 255) % 256
    hue = hue.point(_CIRCLE[steps : steps + 256])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


_CIRCLE = [*range(256), *range(256)]
_SCALED = (brightened, contrasted, saturated)
