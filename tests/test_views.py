"""Views of pictures: each step against a slow reading of its definition, and the block of data that draws them."""

from __future__ import annotations

import colorsys
import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unimodal.data.augment.views import View, brightened, contrasted, jittered, saturated, turned
from unimodal.data.batches import train_batches
from unimodal.data.blocks import Views, columns
from unimodal.data.spec import check_example
from unimodal.errors import UsageError

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 9, 3)).astype(np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])
STILL = View((12, 9), (1.0, 1.0), 0.0, (0.4, 0.4, 0.4, 0.1), 0.0, 0.0, 0.0, (0.1, 2.0), 0.0)


def bounded(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels, 0, 255)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
def test_colours_against_their_definition(factor: float) -> None:
    image, pixels = Image.fromarray(PICTURE), PICTURE.astype(np.float64)
    grey = pixels @ LUMA
    wanted = {
        brightened: factor * pixels,
        contrasted: grey.mean() + factor * (pixels - grey.mean()),
        saturated: grey[..., None] + factor * (pixels - grey[..., None]),
    }
    for change, expected in wanted.items():
        assert np.abs(np.asarray(change(image, factor)) - bounded(expected)).max() <= 1.8, change.__name__


@pytest.mark.parametrize("share", [-0.5, -0.1, 0.0, 0.2])
def test_hue_against_its_definition(share: float) -> None:
    found = np.asarray(turned(Image.fromarray(PICTURE), share)).reshape(-1, 3) / 255
    for got, pixel in zip(found, PICTURE.reshape(-1, 3) / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        # Pillow keeps hue, saturation and value in 8 bits each.
        np.testing.assert_allclose(got, colorsys.hsv_to_rgb((hue + share) % 1, saturation, value), atol=0.05)


def test_each_step_of_a_view_does_what_it_says() -> None:
    def view(**changes: Any) -> np.ndarray:
        return np.asarray(dataclasses.replace(STILL, **changes)(Image.fromarray(PICTURE), np.random.default_rng(3)))

    # The crop's area is the whole picture, but no other shape of that area fits: all of it is taken.
    np.testing.assert_array_equal(view(), PICTURE)
    np.testing.assert_array_equal(view(flip=1.0), PICTURE[:, ::-1])
    assert np.ptp(view(grey=1.0), axis=2).max() == 0
    np.testing.assert_array_equal(view(solarise=1.0), np.where(PICTURE < 128, PICTURE, 255 - PICTURE))
    blurred = view(blur=1.0, blur_sigma=(2.0, 2.0))
    assert blurred.std() < 0.5 * PICTURE.std() and abs(blurred.mean() - PICTURE.mean()) < 5
    assert (view(jitter_chance=1.0) != PICTURE).any()
    assert view(size=(5, 7), crop=(0.1, 0.2)).shape == (5, 7, 3)
    image = Image.fromarray(PICTURE)
    np.testing.assert_array_equal(np.asarray(jittered(image, np.random.default_rng(0), (0, 0, 0, 0))), PICTURE)


def test_chances_are_met() -> None:
    rng, image = np.random.default_rng(0), Image.fromarray(PICTURE)
    flipped = [(np.asarray(dataclasses.replace(STILL, flip=0.3)(image, rng)) != PICTURE).any() for _ in range(400)]
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.07)


def test_views_of_a_dataset() -> None:
    block = Views(small=3, small_size=(16, 24), blur=(1.0, 0.0), solarise=(0.0, 1.0), mean=(0.4, 0.5, 0.6))
    inputs = columns("embedded:emoji", block.part((32, 32)))
    assert {name: spec.shape for name, spec in inputs.spec.items()} == {
        "views": (2, 32, 32, 3),
        "small_views": (3, 16, 24, 3),
    }
    whole = next(train_batches(inputs.dataset("train"), batch_size=4, seed=1))
    example = {name: value[0] for name, value in whole.items() if name != "id"}
    check_example(inputs.spec, example, "views")
    for name, spec in inputs.spec.items():
        assert spec.low <= example[name].min() and example[name].max() <= spec.high
    assert not np.array_equal(example["views"][0], example["views"][1])
    # Any process makes the same rows, in any order, and so does a run that goes on.
    part = train_batches(inputs.dataset("train"), batch_size=4, seed=1, rows=[3])
    np.testing.assert_array_equal(next(part)["views"][0], whole["views"][3])
    # Evaluation draws by the place of the picture alone.
    valid = inputs.dataset("validation")
    np.testing.assert_array_equal(valid[5]["views"], inputs.dataset("validation")[5]["views"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(crop=(0.0, 1.0)), "views.crop must be two shares, 0 < least <= most <= 1, but is"),
        (dict(small_crop=(0.5, 0.2)), "views.small_crop must be two shares"),
        (dict(blur=(0.5, 1.5)), "views.blur is a probability, from 0 to 1, but is"),
        (dict(blur_sigma=(2.0, 1.0)), "views.blur_sigma must be two numbers, 0 <= least <= most"),
        (dict(jitter=(0.1, 0.1, 0.1, 0.6)), "views.jitter must be at least 0, and of hue at most 0.5"),
        (dict(small=-1), "views need count >= 1 and small >= 0"),
        (dict(small=2, small_size=(64, 32)), "views.small_size 64x32 is larger than the tokenizer's image_size 32x32"),
    ],
)
def test_slips_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Views(**changes).part((32, 32))
    with pytest.raises(UsageError, match="views have 3 channels, but the tokenizer takes 1"):
        Views().part((32, 32), 1)
