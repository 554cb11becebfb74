"""Pictures of every kind of file and array, against the same pixels computed by hand."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unimodal.data import decode_image, decode_picture, pictures
from unimodal.errors import UsageError

RNG = np.random.default_rng(0)
# Blocks of 16 equal pixels, so that lossy formats keep them but for rounding.
BLOCKS = np.kron(RNG.integers(0, 256, (3, 2, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))


def saved(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, form, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(values: np.ndarray, color: int, transparent: tuple[int, ...] = ()) -> bytes:
    """16 bits a channel, `[H, W]` or `[H, W, C]`, as the PNG specification has it; color: 0 gray, 2 RGB, 4 gray with alpha."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color, 0, 0, 0)
    extra = chunk(b"tRNS", np.array(transparent, ">u2").tobytes()) if transparent else b""
    body = [chunk(b"IHDR", head), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


UPRIGHT = {  # EXIF orientation → what a viewer does (CIPA DC-008, table 6)
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_are_turned_upright(form: str) -> None:
    options: dict[str, Any] = {"JPEG": dict(quality=100, subsampling=0), "WEBP": dict(lossless=True)}.get(form, {})
    for orientation, move in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = decode_image(saved(BLOCKS, form, exif=exif, **options))
        assert found.shape == move(BLOCKS).shape, orientation
        np.testing.assert_allclose(found.astype(int), move(BLOCKS), atol=1 if form == "JPEG" else 0)


def test_a_damaged_exif_block_leaves_the_picture() -> None:
    data = bytearray(saved(BLOCKS, "PNG", exif=b"Exif\0\0II*\0" + bytes(4)))
    np.testing.assert_array_equal(decode_image(bytes(data)), BLOCKS)
    np.testing.assert_array_equal(decode_image(saved(BLOCKS, "PNG", exif=b"nonsense")), BLOCKS)


def test_sixteen_bits_are_scaled() -> None:
    values = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    values[0, :3] = 0, 257, 65535
    gray = np.rint(values / 257)[:, :, None].repeat(3, axis=2)  # 65535 / 257 = 255
    swapped = Image.frombytes("I;16B", (7, 5), values.astype(">u2").tobytes())
    pgm = b"P5 7 5 65535\n" + values.astype(">u2").tobytes()
    for data in (saved(values), saved(values, "TIFF"), saved(values, "JPEG2000"), saved(swapped, "TIFF"), pgm):
        np.testing.assert_array_equal(decode_image(data), gray)
    np.testing.assert_array_equal(pictures.to_rgb(swapped), gray)
    np.testing.assert_array_equal(decode_image(deep_png(values, 0)), gray)
    white = np.where(values[:, :, None] == values[2, 2], 255, gray)
    np.testing.assert_array_equal(decode_image(deep_png(values, 0, (int(values[2, 2]),))), white)
    # Pillow cuts 16-bit colours to their high byte: at most one off.
    colors = RNG.integers(0, 65536, (4, 3, 3), dtype=np.uint16)
    np.testing.assert_allclose(decode_image(deep_png(colors, 2)).astype(float), colors / 257, atol=1)
    keyed = decode_image(deep_png(colors, 2, tuple(int(c) for c in colors[1, 1])))
    assert keyed[1, 1].tolist() == [255, 255, 255] and (keyed[0, 0] == decode_image(deep_png(colors, 2))[0, 0]).all()
    alpha = np.array([[[30000, 65535], [30000, 0], [0, 32768]]], np.uint16)
    np.testing.assert_allclose(decode_image(deep_png(alpha, 4))[0, :, 0], [30000 / 257, 255, 127], atol=1)
    assert decode_image(b"P5 3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes())[0, :, 0].tolist() == [0, 128, 255]


def test_floats_from_0_to_1_are_scaled_and_what_has_no_white_is_refused() -> None:
    unit = RNG.random((3, 4), dtype=np.float32)
    np.testing.assert_array_equal(decode_image(saved(unit, "TIFF"))[:, :, 1], np.rint(unit.astype(float) * 255))
    for values, message in (
        (np.array([[0, 2.5]], np.float32), r"values of 0 … 2.5 where 0 … 1 is black to white; save it in 8 bits"),
        (np.array([[-1, 0.5]], np.float32), "values of -1 … 0.5"),
        (np.array([[np.nan, 0.5]], np.float32), "values of nan … nan"),
        (np.array([[0, 255]], np.int32), "32-bit integers have no known white; save the picture in 8 or 16 bits"),
    ):
        with pytest.raises(UsageError, match=f"^deep.tif: {message}"):
            decode_image(saved(values, "TIFF"), name="deep.tif")


def test_other_modes_are_what_their_definition_says() -> None:
    bits = np.array([[True, False, True]])
    assert decode_image(saved(bits))[0, :, 0].tolist() == [255, 0, 255]
    both = np.array([[[100, 255], [100, 0], [0, 51]]], np.uint8)
    assert decode_image(saved(both))[0, :, 2].tolist() == [100, 255, 204]  # 0 · 0.2 + 255 · 0.8
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 100])
    assert decode_image(saved(palette)).tolist() == [[[10, 20, 30], [40, 50, 60], [0, 0, 100]]]
    seen = decode_image(saved(palette, transparency=bytes([255, 0, 51])))
    assert seen.tolist() == [[[10, 20, 30], [255, 255, 255], [204, 204, 224]]]
    inks = np.kron(RNG.integers(0, 256, (2, 2, 4), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    light = (255.0 - inks[:, :, :3]) * (255.0 - inks[:, :, 3:]) / 255.0
    plain = Image.fromarray(inks, "CMYK")
    np.testing.assert_allclose(decode_image(saved(plain, "TIFF")), light, atol=1)
    jpeg = saved(plain, "JPEG", quality=100)  # holds 255 - ink, as Adobe's programs write it
    assert b"Adobe" in jpeg
    np.testing.assert_allclose(decode_image(jpeg), light, atol=3)


def test_of_an_animation_the_first_picture_is_read_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    pictures._say_once.cache_clear()
    first, second = Image.new("RGB", (4, 3), (9, 200, 30)), Image.new("RGB", (4, 3), (255, 0, 0))
    with caplog.at_level(logging.WARNING):
        for form in ("GIF", "WEBP", "TIFF", "PNG"):
            options: dict[str, Any] = dict(lossless=True) if form == "WEBP" else {}
            found = decode_image(saved(first, form, save_all=True, append_images=[second], **options))
            assert found[0, 0].tolist() == [9, 200, 30], form
    assert [record.message for record in caplog.records] == [
        "a file of several pictures, or an animation, is read as its first picture (said once)"
    ]


def test_bombs_and_damaged_files_are_one_line() -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    gif = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + saved(BLOCKS, "GIF")[10:]
    for data in (bomb, gif):
        with pytest.raises(UsageError, match="^bomb.png: .*178,956,970"):
            decode_image(data, name="bomb.png")
    with pytest.raises(UsageError, match="^x.eps: PostScript is a program; convert it to PNG or JPEG"):
        decode_image(saved(BLOCKS, "EPS"), name="x.eps")
    whole = {form: saved(BLOCKS, form) for form in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM")}
    for form, data in whole.items():
        with pytest.raises(UsageError, match="^cut: not an image Pillow can read") as caught:
            decode_image(data[: len(data) // 2], name="cut")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300, form


def test_decoded_arrays_are_pictures_too() -> None:
    color = RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    gray = color[:, :, :1]
    found = decode_image(color)
    np.testing.assert_array_equal(found, color)
    assert not np.shares_memory(found, color)
    for array in (gray, gray[:, :, 0]):
        np.testing.assert_array_equal(decode_image(array), gray.repeat(3, axis=2))
    clear = np.concatenate([color, np.full_like(gray, 51)], axis=2)
    np.testing.assert_allclose(decode_image(clear), color * 0.2 + 204, atol=1)
    np.testing.assert_array_equal(decode_image(color.astype(np.uint16) * 257), color)
    np.testing.assert_array_equal(decode_image((color / 255).astype(np.float32)), color)
    np.testing.assert_array_equal(decode_picture({"id": "a", "image": gray})["image"], gray.repeat(3, axis=2))
    for bad, message in (
        (color.astype(np.int64), r"int64\[4, 5, 3\] is no picture: expected uint8, uint16 or floats"),
        (color[:, :, :2], r"uint8\[4, 5, 2\] is no picture"),
        (color[:0], "a picture of 5x0 has no pixels"),
        (color.astype(np.float32), "values of .* where 0 … 1 is black to white"),
    ):
        with pytest.raises(UsageError, match=f"^mnist/3: {message}"):
            decode_picture({"id": "mnist/3", "image": bad})


def test_large_pictures_are_shrunk_by_whole_factors_and_small_ones_left() -> None:
    large = RNG.integers(0, 256, (60, 91, 3), dtype=np.uint8)
    small = decode_image(saved(large), at_least=(20, 30))
    assert small.shape == (20, 31, 3)  # the last column is what is left over
    means = large[:, :90].reshape(20, 3, 30, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small[:, :30], means, atol=0.6)  # rounded, after a division in whole numbers
    np.testing.assert_array_equal(decode_image(saved(large), at_least=(31, 10)), large)
    smooth = np.kron(BLOCKS, np.ones((16, 16, 1), np.uint8))  # 768 x 512
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph = saved(smooth, "JPEG", quality=95, subsampling=0, exif=exif)
    for wanted in ((50, 50), (100, 20), (20, 100), (300, 500), (257, 1)):
        found = decode_image(photograph, at_least=wanted)
        assert found.shape[0] >= wanted[0] and found.shape[1] >= wanted[1]
        factor = 512 // found.shape[0]
        assert factor == (1 if wanted in ((300, 500), (257, 1)) else factor) and found.shape[1] == 768 // factor
        whole = np.rot90(smooth, -1).reshape(512 // factor, factor, 768 // factor, factor, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(found, whole, atol=4)
