"""Pictures in any form, encoded or decoded, as uint8 `[H, W, 3]`."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from unimodal.errors import RecordError

logger = logging.getLogger(__name__)

MOST_PIXELS = 178_956_970
"""The largest picture that is decoded: about 13,000 x 13,000, or half a gigabyte of RGB (Pillow's own limit)."""

_T = Image.Transpose
_UPRIGHT = {
    2: _T.FLIP_LEFT_RIGHT,
    3: _T.ROTATE_180,
    4: _T.FLIP_TOP_BOTTOM,
    5: _T.TRANSPOSE,
    6: _T.ROTATE_270,
    7: _T.TRANSVERSE,
    8: _T.ROTATE_90,
}
"""EXIF's orientations 2 … 8 → the move that undoes each."""


def decode_image(
    data: bytes | np.ndarray, *, name: str = "image", at_least: tuple[int, int] | None = None
) -> np.ndarray:
    """Encoded bytes, or pixels that are decoded already, as uint8 `[H, W, 3]` RGB, upright by the EXIF orientation.

    Transparency is laid over white. 16 bits and floats from 0 to 1 are scaled to 0 … 255. Of several pictures in one
    file the first is taken, and that is logged, once. `data` may be any format Pillow reads except PostScript, or an
    array `[H, W]` or `[H, W, 1 | 3 | 4]` of uint8, uint16 or floats.

    at_least: (height, width). A picture that is at least twice as large both ways is shrunk by whole factors, never
    below this, so that a large photograph takes neither the time nor the memory of all its pixels.

    Raises RecordError, naming `name`, for what is no picture or is cut short, for more than `MOST_PIXELS`, and for
    values without a known white (32-bit integers, floats outside 0 … 1).
    """
    return np.asarray(open_picture(data, name=name, at_least=at_least))


def open_picture(
    data: bytes | np.ndarray, *, name: str = "image", at_least: tuple[int, int] | None = None
) -> Image.Image:
    """`decode_image` as a Pillow picture in RGB, for what goes on in Pillow: a copy less each way."""
    if isinstance(data, np.ndarray):
        return _shrunk(Image.fromarray(_from_array(data, name)), at_least)
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_pixels(image.size, name)
            if image.format == "EPS":
                raise RecordError(f"{name}: PostScript is a program; convert it to PNG or JPEG")
            if at_least is not None:
                # JPEG alone: the decoder leaves out frequencies that the smaller picture could not show.
                image.draft(None, (max(at_least), max(at_least)))
            return _shrunk(upright(image, name=name), at_least)
    except RecordError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RecordError(f"{name}: a picture of more than {MOST_PIXELS:,} pixels; make it smaller") from error
    except Exception as error:  # damaged files make the many decoders raise anything
        raise RecordError(f"{name}: not an image Pillow can read ({_reason(error)})") from error


def picture_size(data: bytes | np.ndarray, name: str) -> tuple[int, int]:
    """Height and width as the header says, upright by the EXIF orientation: nothing is decoded. Raises RecordError for what
    is no picture."""
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            turned = _orientation(image) >= 5
    except Exception as error:  # as `decode_image`
        raise RecordError(f"{name}: not an image Pillow can read ({_reason(error)})") from error
    _check_pixels((width, height), name)
    return (width, height) if turned else (height, width)


def to_rgb(image: Image.Image, *, name: str = "image") -> np.ndarray:
    """A picture of any mode as uint8 `[H, W, 3]` RGB, as `decode_image` has it."""
    return np.asarray(upright(image, name=name))


def upright(image: Image.Image, *, name: str = "image") -> Image.Image:
    """A picture of any mode in RGB, upright by its EXIF orientation."""
    if getattr(image, "is_animated", False):
        _say_once("a file of several pictures, or an animation, is read as its first picture")
    image.load()  # before the orientation is asked for: some formats hold their EXIF data behind the pixels
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = _eight_bits(image, name)
    elif image.has_transparency_data:
        transparent = image.info.get("transparency")
        if isinstance(transparent, tuple) and max(transparent) > 255:  # of a file of 16 bits a channel, cut to 8
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
        layer = image.convert("RGBA")
        pixels = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    else:
        pixels = image if image.mode == "RGB" else image.convert("RGB")
    move = _UPRIGHT.get(_orientation(image))
    return pixels if move is None else pixels.transpose(move)


def decode_picture(record: Mapping[str, Any], *, at_least: tuple[int, int] | None = None) -> dict[str, Any]:
    """The record with its "image" as uint8 [H,W,3], see `decode_image`; its id is named if that fails."""
    return {**record, "image": decode_image(record["image"], name=record["id"], at_least=at_least)}


def _check_pixels(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise RecordError(f"{name}: {width}x{height} pixels are more than {MOST_PIXELS:,}; make the picture smaller")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """A picture of one deep channel (16-bit, 32-bit integer or float) in RGB."""
    values = np.asarray(image)
    if image.mode == "I" and not (image.format in ("PNG", "PPM") or _bits(image) == 16):
        raise RecordError(f"{name}: 32-bit integers have no known white; save the picture in 8 or 16 bits")
    gray = _scaled(values, 1.0 if image.mode == "F" else 65535.0, name)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _bits(image: Image.Image) -> int:
    """Bits a channel as a TIFF's header has them, 0 elsewhere."""
    found = getattr(image, "tag_v2", {}).get(258, 0)
    return found[0] if isinstance(found, tuple) else found


def _scaled(values: np.ndarray, white: float, name: str) -> np.ndarray:
    """0 … `white` → uint8, rounded."""
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= white):
        found = f"{values.min():g} … {values.max():g}"
        raise RecordError(f"{name}: values of {found} where 0 … {white:g} is black to white; save it in 8 bits")
    return np.rint(values * np.float64(255.0 / white)).astype(np.uint8)


def _from_array(pixels: np.ndarray, name: str) -> np.ndarray:
    """Decoded pixels as uint8 [H,W,3], a copy."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    kind = pixels.dtype
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not (kind in (np.uint8, np.uint16) or kind.kind == "f"):
        raise RecordError(
            f"{name}: {kind}{list(pixels.shape)} is no picture: expected uint8, uint16 or floats "
            "[height,width] or [height,width,1, 3 or 4]"
        )
    if not pixels.size:
        raise RecordError(f"{name}: a picture of {pixels.shape[1]}x{pixels.shape[0]} has no pixels")
    if kind != np.uint8:
        pixels = _scaled(pixels, 65535.0 if kind == np.uint16 else 1.0, name)
    if pixels.shape[2] == 4:
        return to_rgb(Image.fromarray(pixels))
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # the pixels are whole; what is beside them may be damaged in any way
        return 1


def _shrunk(picture: Image.Image, at_least: tuple[int, int] | None) -> Image.Image:
    """The mean of whole squares of pixels."""
    if at_least is None:
        return picture
    factor = min(picture.height // at_least[0], picture.width // at_least[1])
    return picture.reduce(factor) if factor > 1 else picture


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose own words name an address in memory
        return "of no known format"
    return " ".join(str(error).split())[:200] or type(error).__name__


@functools.cache
def _say_once(text: str) -> None:
    logger.warning("%s (said once)", text)
