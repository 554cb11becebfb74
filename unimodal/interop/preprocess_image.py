"""Pictures → pixels, or colours' ids, as a checkpoint's preprocessor_config.json has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.image import center_crop, nearest_color, resize, with_shorter_side
from unimodal.data.pictures import decode_image, to_rgb
from unimodal.errors import UsageError
from unimodal.interop.describe import Fields

Picture = Image.Image | np.ndarray | str | Path | bytes

_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_SQUARE, _EDGE = {"height": 224, "width": 224}, {"shortest_edge": 224}
# What a processor does where its file is silent; 2 is bilinear, 3 bicubic, as Pillow numbers them.
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"size": _SQUARE, "resample": 2, **_HALF},
    "DeiT": {"size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True, **_HALF},
    "Beit": {"size": _SQUARE, "resample": 3, **_HALF},
    "Siglip": {"size": _SQUARE, "resample": 3, **_HALF},
    "CLIP": {"size": _EDGE, "resample": 3, "do_center_crop": True, **_CLIP},
    "Bit": {"size": _EDGE, "resample": 3, "do_center_crop": True, **_CLIP},
    "ImageGPT": {"size": {"height": 256, "width": 256}, "resample": 2, "do_color_quantize": True, **_HALF},
}
_EDGE_BY_NUMBER = ("CLIP", "Bit")  # to whom one number is the shorter side, not both sides


@dataclass(frozen=True, eq=False)
class ImageSteps:
    """Steps that happen to a picture, in this order. A step that is None is left out."""

    size: tuple[int, int] | int | None  # (height, width), or the length of the shorter side
    resample: Image.Resampling  # the filter of the resizing
    crop: tuple[int, int] | None  # the middle (height, width)
    scale: float | None  # that pixels are multiplied by
    mean: np.ndarray | None  # of each channel, which is taken away
    std: np.ndarray | None  # of each channel, which divides
    colors: np.ndarray | None = None  # the nearest of these rows replaces the pixel, and its number the picture

    def __call__(self, image: Picture | Sequence[Picture]) -> np.ndarray:
        """One picture or several: Pillow's, uint8 [H,W,3] (or [H,W], [H,W,1], [H,W,4]), paths, encoded bytes → float32
        [B,H,W,3], or int32 [B,H·W] where pixels are ids. Transparency is laid over white.

        Raises UsageError for what is no picture, and where pictures come out in different sizes.
        """
        several = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
        pictures: Sequence[Any] = image if several else [image]  # pyright: ignore[reportAssignmentType]
        if not len(pictures):
            raise UsageError("image is an empty list; give at least one picture")
        made = [self._apply(to_pixels(picture, f"image {i}")) for i, picture in enumerate(pictures)]
        if len(sizes := sorted({m.shape for m in made})) > 1:
            raise UsageError(
                f"the pictures come out in different sizes, {list(sizes[0][:2])} and {list(sizes[1][:2])}; give them one by one"
            )
        return np.stack(made)

    def _apply(self, pixels: np.ndarray) -> np.ndarray:
        if self.size is not None:
            pixels = resize(pixels, *self._target(pixels), resample=self.resample)
        if self.crop is not None:
            pixels = center_crop(pixels, *self.crop)
        values = pixels.astype(np.float32)
        if self.scale is not None:
            values = (pixels * np.float64(self.scale)).astype(np.float32)
        if self.mean is not None and self.std is not None:
            values = (values - self.mean) / self.std
        return values if self.colors is None else nearest_color(values, self.colors).reshape(-1)

    def _target(self, pixels: np.ndarray) -> tuple[int, int]:
        if isinstance(self.size, tuple):
            return self.size
        assert self.size is not None
        return with_shorter_side(pixels, self.size)


def to_pixels(picture: Picture, name: str) -> np.ndarray:
    """Any picture as uint8 [H,W,3]."""
    if isinstance(picture, str | Path):
        path = Path(picture).expanduser()
        if not path.is_file():
            raise UsageError(f"{name}: there is no file {path}")
        return decode_image(path.read_bytes(), name=str(path))
    if isinstance(picture, bytes):
        return decode_image(picture, name=name)
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    if not isinstance(picture, np.ndarray):
        raise UsageError(
            f"{name} should be a picture of Pillow, a uint8 array or a path, but is a {type(picture).__name__}"
        )
    gray = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 1)
    if picture.dtype != np.uint8 or not (gray or (picture.ndim == 3 and picture.shape[2] in (3, 4))):
        raise UsageError(
            f"{name} should be uint8 [height,width,3] from 0 to 255, but is {picture.dtype}{list(picture.shape)}"
        )
    if not picture.size:
        raise UsageError(f"{name} of the shape {list(picture.shape)} has no pixels")
    return to_rgb(Image.fromarray(picture[..., 0] if gray and picture.ndim == 3 else picture))


def load_image(name: str, config: Fields) -> ImageSteps:
    """The steps of the processor `name`, one of `PROCESSORS`, whose settings are `config`.

    Raises UsageError for a setting of the wrong type, and for steps that we have not.
    """
    given = {key: value for key, value in config.values.items() if value is not None}
    fields = Fields({**PROCESSORS[name], **given}, config.where)
    for key in ("do_pad", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order"):
        fields.only(key, False)
    if fields.get("resample", 2) not in list(Image.Resampling):
        raise UsageError(f"{config.where}: resample={fields.raw('resample')} is not one of Pillow's filters, 0 to 5")
    normal, colors = fields.get("do_normalize", True), None
    if name == "ImageGPT" and fields.get("do_color_quantize", True):
        colors = _array(fields, "clusters", columns=3)
    cropped = fields.get("do_center_crop", False)
    crop = _size(fields, "crop_size", _SQUARE, edge=False) if cropped else None
    assert crop is None or isinstance(crop, tuple)
    return ImageSteps(
        size=_size(fields, "size", {}, edge=name in _EDGE_BY_NUMBER) if fields.get("do_resize", True) else None,
        resample=Image.Resampling(fields.get("resample", 2)),
        crop=crop,
        scale=fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else None,
        mean=_array(fields, "image_mean") if normal else None,
        std=_array(fields, "image_std") if normal else None,
        colors=colors,
    )


def _size(fields: Fields, key: str, default: Mapping[str, int], *, edge: bool) -> tuple[int, int] | int:
    """(height, width) or the shorter side, from any of the forms in use: a number, two, or an object."""
    value = fields.raw(key) or default
    value = {name: side for name, side in value.items() if side is not None} if isinstance(value, dict) else value
    if isinstance(value, int):
        value = {"shortest_edge": value} if edge else {"height": value, "width": value}
    elif isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if isinstance(value, dict) and value and all(isinstance(number, int) and number > 0 for number in value.values()):
        if set(value) == {"height", "width"}:
            return value["height"], value["width"]
        if set(value) == {"shortest_edge"} and key == "size":
            return value["shortest_edge"]
    raise UsageError(f"{fields.where}: {key}={fields.raw(key)!r} should be height and width, or the shortest_edge")


def _array(fields: Fields, key: str, columns: int | None = None) -> np.ndarray:
    """One number or one per channel; with `columns`, rows of so many."""
    try:
        value = np.asarray(fields.raw(key), np.float32 if columns is None else np.float64)
    except (TypeError, ValueError):
        value = np.full((0, 0, 0), np.nan, np.float32)
    fits = value.shape in ((), (3,)) if columns is None else value.ndim == 2 and value.shape[1] == columns
    if not fits or not np.isfinite(value).all() or (key == "image_std" and (value == 0).any()):
        wanted = "one number per channel" if columns is None else f"rows of {columns} numbers"
        raise UsageError(f"{fields.where}: {key} should be {wanted}")
    return value
