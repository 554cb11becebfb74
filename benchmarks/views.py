"""Views a second on one core, beside torchvision's transforms on the same pictures, in one run.

    pip install torch torchvision && python -m benchmarks.views [--pictures 64] [--rounds 5]

Both make SimCLR's views (Chen 2020, appendix A) of pictures that are in memory as Pillow images: crop, mirror, colour jitter,
grey and blur. Rounds alternate; the figure is the median. `blur` in torchvision is a convolution; the rows without one
compare the rest alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.augment.views import View


def pictures(count: int, side: int) -> list[Image.Image]:
    """Random colours, smoothed, so that no step has less to do than with photographs."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, side // 4, side // 4, 3)).astype(np.uint8)
    return [Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC) for x in small]


def ours(size: int, blur: float) -> Callable[[Image.Image], Any]:
    view = View((size, size), (0.08, 1.0), 0.5, (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, blur, (0.1, 2.0), 0.0)
    rng = np.random.default_rng(0)
    return lambda picture: view(picture, rng)


def theirs(size: int, blur: float) -> Callable[[Image.Image], Any]:
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)
    steps: list[Any] = [
        transforms.RandomResizedCrop(size, scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
    ]
    if blur:
        kernel = size // 10 // 2 * 2 + 1  # a tenth of the picture, as in the paper, and odd
        steps.append(transforms.RandomApply([transforms.GaussianBlur(kernel, (0.1, 2.0))], p=blur))
    return transforms.Compose(steps)


def seconds(make: Callable[[Image.Image], Any], given: list[Image.Image]) -> float:
    """CPU seconds of this process, so that others on the machine count for less."""
    start = time.process_time()
    for picture in given:
        make(picture)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("picture  view  blur  ours/s  torchvision/s  ratio")
    for side, size, blur in ((72, 32, 0.0), (256, 224, 0.0), (256, 224, 0.5)):
        given = pictures(arguments.pictures, side)
        both = (ours(size, blur), theirs(size, blur))
        found: tuple[list[float], list[float]] = ([], [])
        for make in both:
            seconds(make, given[:4])
        for _ in range(arguments.rounds):
            for times, make in zip(found, both, strict=True):
                times.append(seconds(make, given))
        rates = [len(given) / statistics.median(times) for times in found]
        print(f"{side:7d} {size:5d} {blur:5.1f} {rates[0]:7.0f} {rates[1]:14.0f} {rates[0] / rates[1]:6.2f}")


if __name__ == "__main__":
    main()
