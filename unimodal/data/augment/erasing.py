"""Random erasing: a rectangle of noise in the place of what was there (Zhong 2020)."""

from __future__ import annotations

import math

import numpy as np


def random_erase(
    pixels: np.ndarray,
    rng: np.random.Generator,
    probability: float,
    *,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> np.ndarray:
    """float32 `[H, W, C]`, normalised, with standard normal noise in a rectangle of a random share of the area and a random
    height over width, with this probability (algorithm 1). What is given stays as it is. Ten tries to draw one that fits.
    """
    if rng.random() >= probability:
        return pixels
    height, width, channels = pixels.shape
    for _ in range(10):
        size = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, columns = round(math.sqrt(size * aspect)), round(math.sqrt(size / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
            erased = pixels.copy()
            noise = rng.standard_normal((rows, columns, channels), np.float32)
            erased[top : top + rows, left : left + columns] = noise
            return erased
    return pixels
