"""Images on the host: uint8 `[H, W, 3]` to bytes, sizes, augmentation with an explicit generator, uint8 to float."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image


def encode_image(image: np.ndarray) -> bytes:
    """uint8 `[H, W, 3]` as lossless WebP bytes: for small pictures a fifth smaller than the best PNG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="WEBP", lossless=True, quality=100, method=6, exact=True)
    return out.getvalue()


def resize(
    image: np.ndarray, height: int, width: int, *, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """uint8 `[H, W, 3]` to `[height, width, 3]`: by default bicubic; area-weighted when it shrinks, so nothing aliases
    (except with `Resampling.NEAREST`)."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


def with_shorter_side(image: np.ndarray | Image.Image, side: int) -> tuple[int, int]:
    """(height, width) of the image scaled so that its shorter side has so many pixels; the longer is rounded down."""
    height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
    longer = int(side * max(height, width) / min(height, width))
    return (side, longer) if height <= width else (longer, side)


def center_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle `[height, width, C]` of `[H, W, C]`; a side that is too short gets zeros at both ends.

    An odd difference leaves the extra row or column at the far end when it crops, at the near end when it pads.
    """
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    kept = image[max(0, top) :, max(0, left) :][:height, :width]
    if kept.shape[:2] == (height, width):
        return kept
    out = np.zeros((height, width, image.shape[2]), image.dtype)
    out[max(0, -top) :, max(0, -left) :][: kept.shape[0], : kept.shape[1]] = kept
    return out


def nearest_color(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The row of `palette` `[N, C]` nearest to each of `pixels` `[…, C]`, int32 `[…]`; the first of equals."""
    flat, palette = pixels.reshape(-1, pixels.shape[-1]), palette.astype(np.float64)
    # |p|² is the same for all colours, so it is left out of |p - c|².
    distance = np.square(palette).sum(axis=1) - 2.0 * (flat @ palette.T)
    return distance.argmin(axis=1).astype(np.int32).reshape(pixels.shape[:-1])


def to_float(image: np.ndarray, *, mean: Sequence[float] | float = 0.5, std: Sequence[float] | float = 0.5):
    """uint8 `[…, 3]` to float32: `(image / 255 - mean) / std`, so [-1, 1] by default; per channel if lists."""
    scale = np.float32(1.0) / (np.float32(255.0) * np.asarray(std, np.float32))
    offset = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    out = image * scale
    return np.subtract(out, offset, out=out)


def to_uint8(image: np.ndarray, *, mean: Sequence[float] | float = 0.5, std: Sequence[float] | float = 0.5):
    """The inverse of `to_float`, clipped to [0, 255] and rounded."""
    unit = image * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.clip(np.rint(unit * 255.0), 0, 255).astype(np.uint8)


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a random area (a share in `scale`) and aspect (log-uniform in `ratio`): Inception's crop.

    Szegedy et al. 2015, section 6. Ten tries to draw one that fits, then the whole image.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if crop_width <= width and crop_height <= height:
            left = rng.uniform(0, width - crop_width)
            top = rng.uniform(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    return 0.0, 0.0, float(width), float(height)


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A rectangle from `random_box`, resized to [height, width, C]."""
    return np.asarray(cropped(Image.fromarray(image), rng, height, width, scale=scale, ratio=ratio))


def cropped(
    picture: Image.Image,
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Image.Image:
    """`random_resized_crop` of a Pillow picture."""
    box = random_box(picture.height, picture.width, rng, scale=scale, ratio=ratio)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box=box)


def random_shift(image: np.ndarray, rng: np.random.Generator, pixels: int, *, fill: int = 255) -> np.ndarray:
    """The image moved by up to `pixels` each way, both axes; what is uncovered becomes `fill`."""
    down, right = (int(step) for step in rng.integers(-pixels, pixels + 1, 2))
    height, width = image.shape[:2]
    out = np.full_like(image, fill)
    if abs(down) >= height or abs(right) >= width:
        return out
    source = image[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    out[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = source
    return out


def random_flip(image: np.ndarray, rng: np.random.Generator, probability: float = 0.5) -> np.ndarray:
    """The image mirrored left to right with this probability (a view)."""
    return image[:, ::-1] if rng.random() < probability else image


def color_jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
) -> np.ndarray:
    """Brightness, contrast and saturation, in this order, each scaled by a factor drawn from [1 - x, 1 + x].

    Contrast moves pixels from or to the image's mean grey, saturation from or to their own grey (Rec. 601 luma).
    Takes and returns uint8 `[H, W, 3]`.
    """
    factors = 1.0 + rng.uniform(-1.0, 1.0, 3) * np.array([brightness, contrast, saturation])
    bright, contrasty, saturated = np.maximum(factors, 0.0).astype(np.float32)
    pixels = np.minimum(image * bright, np.float32(255.0))
    mean = np.float32((pixels @ _LUMA).mean())
    pixels = np.clip(mean + contrasty * (pixels - mean), 0.0, 255.0)
    gray = (pixels @ _LUMA)[..., None]
    pixels = np.clip(gray + saturated * (pixels - gray), 0.0, 255.0)
    return (pixels + np.float32(0.5)).astype(np.uint8)


_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The augmentations above in one go, for uint8 images. A step that would do nothing is skipped."""

    size: tuple[int, int]  # height and width of the result
    scale: tuple[float, float] = (0.5, 1.0)  # range of the crop's area, as a share; (1, 1): no crop
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width over its height
    shift: int = 0  # pixels, at most, each way
    flip: float = 0.5  # probability of a mirror image
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)  # ranges of brightness, contrast and saturation
    fill: int = 255  # value of pixels from outside

    def __call__(self, image: np.ndarray | Image.Image, rng: np.random.Generator) -> np.ndarray:
        """uint8 `[H, W, 3]`, or a Pillow picture in RGB, to uint8 `[*size, 3]`."""
        if self.scale != (1, 1):
            picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
            picture = cropped(picture, rng, *self.size, scale=self.scale, ratio=self.ratio)
            if self.flip and not self.shift and rng.random() < self.flip:  # Pillow mirrors ten times as fast as numpy
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            image = np.asarray(picture)
        else:
            image = resize(np.asarray(image), *self.size)
        if self.shift:
            image = random_shift(image, rng, self.shift, fill=self.fill)
        if self.flip and (self.shift or self.scale == (1, 1)):
            image = random_flip(image, rng, self.flip)
        if any(self.jitter):
            brightness, contrast, saturation = self.jitter
            image = color_jitter(image, rng, brightness=brightness, contrast=contrast, saturation=saturation)
        return np.ascontiguousarray(image)
