"""Pictures and sounds: decoding, augmentation, frames and span masks."""

from __future__ import annotations

import io
import math
import time

import numpy as np
import pytest
import soundfile
from PIL import Image

from unimodal.data import (
    Augmentation,
    color_jitter,
    crop_or_pad,
    decode_audio,
    decode_image,
    encode_image,
    normalize,
    random_flip,
    random_resized_crop,
    random_shift,
    resize,
    span_mask,
    to_float,
    to_uint8,
)
from unimodal.errors import UsageError

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def image_bytes(image: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, format=form)
    return out.getvalue()


def test_images_decode_to_rgb_on_white() -> None:
    np.testing.assert_array_equal(decode_image(encode_image(PICTURE)), PICTURE)
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 255, 255))
    assert decode_image(image_bytes(half)).tolist() == [[[255, 255, 255], [0, 0, 255]]]
    gray = decode_image(image_bytes(Image.new("L", (3, 2), 7)))
    assert gray.shape == (2, 3, 3) and gray.dtype == np.uint8 and (gray == 7).all()
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    palette.info["transparency"] = 0
    assert decode_image(image_bytes(palette)).tolist() == [[[255, 255, 255]]]
    for broken in (b"", b"not a picture", image_bytes(Image.fromarray(PICTURE))[:200]):
        with pytest.raises(UsageError, match="^cat.png: not an image Pillow can read"):
            decode_image(broken, name="cat.png")


def test_to_float_and_back() -> None:
    unit = to_float(PICTURE)
    assert unit.dtype == np.float32 and unit.shape == PICTURE.shape
    np.testing.assert_allclose(unit, PICTURE.astype(np.float64) / 127.5 - 1, atol=1e-6)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (PICTURE / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(to_float(PICTURE, mean=mean, std=std), expected, atol=1e-5)
    np.testing.assert_array_equal(to_uint8(unit), PICTURE)
    np.testing.assert_array_equal(to_uint8(to_float(PICTURE, mean=mean, std=std), mean=mean, std=std), PICTURE)


def test_resize_does_not_alias() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(stripes, 16, 16)[:, 2:-2].astype(int) - 128).max() <= 4
    assert resize(PICTURE, 8, 20).shape == (8, 20, 3)
    assert resize(PICTURE, 32, 32) is PICTURE


def test_shift_moves_by_whole_pixels() -> None:
    seen = set()
    for seed in range(200):
        moved = random_shift(PICTURE, np.random.default_rng(seed), 2, fill=255)
        down, right = np.random.default_rng(seed).integers(-2, 3, 2)
        padded = np.pad(PICTURE, ((2, 2), (2, 2), (0, 0)), constant_values=255)
        np.testing.assert_array_equal(moved, padded[2 - down : 34 - down, 2 - right : 34 - right])
        seen.add((int(down), int(right)))
    assert len(seen) == 25


def test_flip_crop_and_jitter() -> None:
    np.testing.assert_array_equal(random_flip(PICTURE, RNG, 1.0), PICTURE[:, ::-1])
    assert random_flip(PICTURE, RNG, 0.0) is PICTURE
    flips = np.mean([random_flip(PICTURE, RNG)[0, 0, 0] != PICTURE[0, 0, 0] for _ in range(1000)])
    assert 0.45 < flips < 0.55
    np.testing.assert_array_equal(random_resized_crop(PICTURE, RNG, 32, 32, scale=(1, 1), ratio=(1, 1)), PICTURE)
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    widths = [np.ptp(random_resized_crop(ramp, RNG, 16, 16, scale=(0.25, 0.25), ratio=(1, 1))) for _ in range(50)]
    assert all(28 <= width <= 32 for width in widths)  # a quarter of the area is half of the width
    np.testing.assert_array_equal(color_jitter(PICTURE, RNG, brightness=0, contrast=0, saturation=0), PICTURE)
    gray = np.full((8, 8, 3), 100, np.uint8)
    np.testing.assert_allclose(color_jitter(gray, RNG, brightness=0, contrast=1, saturation=1), gray, atol=1)
    brightness = {int(color_jitter(gray, RNG, brightness=0.4, contrast=0, saturation=0)[0, 0, 0]) for _ in range(200)}
    assert min(brightness) >= 60 and max(brightness) <= 140 and max(brightness) - min(brightness) > 60


def test_augmentation_is_reproducible_and_fast() -> None:
    augment = Augmentation((32, 32), scale=(0.5, 1.0), shift=2, jitter=(0.4, 0.4, 0.4))
    first, again, other = (augment(PICTURE, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8 and first.flags.c_contiguous
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    plain = Augmentation((32, 32), scale=(1, 1), flip=0.0)
    np.testing.assert_array_equal(plain(PICTURE, RNG), PICTURE)
    start = time.process_time()
    for _ in range(600):
        to_float(augment(PICTURE, RNG))
    assert 600 / (time.process_time() - start) > 1500  # half of what a quiet core does at worst


def wav(samples: np.ndarray, rate: int, form: str = "WAV", subtype: str = "FLOAT") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=form, subtype=subtype)
    return out.getvalue()


def test_audio_decodes_at_the_wanted_rate() -> None:
    seconds = np.arange(48_000) / 48_000
    tone = (0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    np.testing.assert_array_equal(decode_audio(wav(tone, 48_000), 48_000), tone)
    low = decode_audio(wav(tone, 48_000), 16_000)
    assert low.dtype == np.float32 and low.shape == (16_000,)
    np.testing.assert_allclose(low[100:-100], tone[::3][100:-100], atol=2e-3)
    hiss = (0.5 * np.sin(2 * np.pi * 11_000 * seconds)).astype(np.float32)  # above the new Nyquist limit: must go
    assert np.abs(decode_audio(wav(hiss, 48_000), 16_000)[100:-100]).max() < 0.01
    stereo = np.stack([tone, -0.5 * tone], axis=1)
    np.testing.assert_allclose(decode_audio(wav(stereo, 48_000), 48_000), 0.25 * tone, atol=1e-6)
    opus = decode_audio(wav(low, 16_000, "OGG", "OPUS"), 16_000)
    assert opus.shape == low.shape and np.corrcoef(opus, low)[0, 1] > 0.98
    np.testing.assert_array_equal(decode_audio(wav(8 * tone, 48_000), 48_000), 8 * tone)  # loud, but not clipped
    np.testing.assert_allclose(decode_audio(wav(8 * tone, 48_000), 16_000), 8 * low, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match="^a.wav: not a sound"):
        decode_audio(b"noise", 16_000, name="a.wav")


def test_normalize_crop_and_pad() -> None:
    sound = RNG.normal(3.0, 5.0, 1000).astype(np.float32)
    level = normalize(sound)
    assert level.dtype == np.float32 and abs(level.mean()) < 1e-5 and abs(level.std() - 1) < 1e-4
    assert np.isfinite(normalize(np.zeros(10, np.float32))).all()
    piece, real = crop_or_pad(sound[:3], 5)
    assert piece.tolist() == [*sound[:3], 0, 0] and real == 3 and piece.dtype == np.float32
    piece, real = crop_or_pad(sound, 5)
    np.testing.assert_array_equal(piece, sound[:5])
    ramp = np.arange(8, dtype=np.float32)
    assert {crop_or_pad(ramp, 5, RNG)[0][0] for _ in range(200)} == {0, 1, 2, 3}


def expected_coverage(valid: int, spans: int, length: int) -> np.ndarray:
    """P(frame t is masked) when `spans` of the valid - length + 1 starts are drawn without replacement."""
    starts = valid - length + 1
    frames = np.arange(valid)
    covering = np.minimum(frames, starts - 1) - np.maximum(frames - length + 1, 0) + 1
    return 1 - np.array([math.comb(starts - int(c), spans) for c in covering]) / math.comb(starts, spans)


@pytest.mark.parametrize(("frames", "valid", "probability", "length"), [(49, 49, 0.65, 10), (120, 90, 0.5, 4)])
def test_span_mask_coverage(frames: int, valid: int, probability: float, length: int) -> None:
    rng = np.random.default_rng(0)
    draws = 6000
    found = np.mean([span_mask(frames, rng, probability, length, valid=valid) for _ in range(draws)], axis=0)
    assert not found[valid:].any()
    wanted = probability * valid / length
    upper = wanted - math.floor(wanted)
    few, many = (expected_coverage(valid, math.floor(wanted) + more, length) for more in (0, 1))
    expected = (1 - upper) * few + upper * many
    np.testing.assert_allclose(found[:valid], expected, atol=4 * 0.5 / math.sqrt(draws))
    assert abs(found[:valid].mean() - expected.mean()) < 0.005


def test_span_mask_of_the_paper_masks_about_half() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([span_mask(1000, rng, 0.65, 10).mean() for _ in range(300)])
    assert abs(share - (1 - math.exp(-0.65))) < 0.015  # section 3.1: "approximately 49 %"


def test_span_mask_bounds() -> None:
    rng = np.random.default_rng(0)
    assert span_mask(20, rng, 0.0, 5).sum() == 0
    assert span_mask(20, rng, 0.0, 5, min_masks=1).sum() == 5
    assert span_mask(20, rng, 1.0, 20).all()
    for _ in range(100):  # two spans of 5 fit in 11 frames, however many are asked for
        assert 6 <= span_mask(30, rng, 0.0, 5, min_masks=9, valid=11).sum() <= 10
    assert span_mask(20, rng, 1.0, 5, min_masks=2, valid=4).sum() == 0
    assert span_mask(20, rng, 1.0, 5, valid=0).sum() == 0 and span_mask(0, rng, 0.5, 5).shape == (0,)
    for keywords, message in (
        ({"probability": 0.5, "length": 0}, "span length must be at least 1 frame, found 0"),
        ({"probability": 1.5, "length": 2}, r"span probability must be in \[0, 1\], found 1.5"),
        ({"probability": 0.5, "length": 2, "valid": 21}, "valid frames must be in 0 … 20, found 21"),
    ):
        with pytest.raises(UsageError, match=message):
            span_mask(20, rng, **keywords)
