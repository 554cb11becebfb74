"""RandAugment: a few operations at random, all of one strength (Cubuk 2020).

Takes and gives Pillow pictures in RGB. What comes in from outside is `FILL`, a middle grey.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

STRONGEST = 10.0  # the magnitude at which each operation does its most
FILL = (128, 128, 128)

Operation = Callable[[Image.Image, float], Image.Image]


def rand_augment(picture: Image.Image, rng: np.random.Generator, count: int, magnitude: float) -> Image.Image:
    """The picture after `count` operations, drawn with replacement (§3, "algorithm 1"). magnitude: 0 to 10."""
    names, share = list(OPERATIONS), magnitude / STRONGEST
    for number, sign in zip(rng.integers(0, len(names), count), rng.integers(0, 2, count), strict=True):
        picture = OPERATIONS[names[number]](picture, share if sign else -share)
    return picture


def _moved(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Pixel (x, y) is taken from (a·x + b·y + c, d·x + e·y + f)."""
    transform = Image.Transform.AFFINE
    return picture.transform(picture.size, transform, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Enhance by a factor from 0.1 to 1.9."""
    return lambda picture, share: kind(picture).enhance(1.0 + 0.9 * share)


# The operations of the paper (§3.1) and how far they go, as AutoAugment has it (Cubuk 2019, table 6), by their share of the
# strongest, from -1 to 1. Where there is one direction only, the sign does not matter.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda picture, _: picture,
    "autocontrast": lambda picture, _: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _: ImageOps.equalize(picture),
    "rotate": lambda picture, share: picture.rotate(30.0 * share, Image.Resampling.BILINEAR, fillcolor=FILL),
    "solarize": lambda picture, share: ImageOps.solarize(picture, round(256 * (1 - abs(share)))),
    "posterize": lambda picture, share: ImageOps.posterize(picture, 8 - round(4 * abs(share))),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda picture, share: _moved(picture, (1, 0.3 * share, 0, 0, 1, 0)),
    "shear_y": lambda picture, share: _moved(picture, (1, 0, 0, 0.3 * share, 1, 0)),
    "translate_x": lambda picture, share: _moved(picture, (1, 0, 0.45 * share * picture.width, 0, 1, 0)),
    "translate_y": lambda picture, share: _moved(picture, (1, 0, 0, 0, 1, 0.45 * share * picture.height)),
}
