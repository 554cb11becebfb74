"""Changes of a picture that words can ask for: tints, turns, sizes and light, each with the words that ask for it.

A change has phrases for training and others for evaluation. The latter use words that no training phrase has, though often
of a stem that some have: a model that reads letters may understand "reddish" after "red".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

HUES = {"red": 0, "orange": 28, "yellow": 55, "green": 120, "blue": 220, "purple": 280, "pink": 325}
"""Degrees on the colour circle."""

WHITE = 245
"""A pixel whose darkest channel is lighter is background, which a tint leaves as it is."""

SEEN = 3.0
"""Mean difference in levels of 255 from which two pictures count as different."""


@dataclass(frozen=True)
class Change:
    """One change of a picture."""

    apply: Callable[[Image.Image], Image.Image]  # RGB → RGB of the same size
    said: tuple[str, ...]  # how training asks for it
    unseen: tuple[str, ...]  # how evaluation asks for it


def tinted(picture: Image.Image, hue: int) -> Image.Image:
    """Give every pixel one hue. Its brightness stays, and it is strongly coloured."""
    h, s, v = picture.convert("HSV").split()
    h = h.point(lambda _: round(hue * 255 / 360))
    s = s.point(lambda x: max(x, 150))
    v = v.point(lambda x: max(x, 60))  # black has no hue that could be seen
    coloured = Image.merge("HSV", (h, s, v)).convert("RGB")
    pixels, darkest = np.asarray(picture), np.asarray(picture).min(axis=-1, keepdims=True)
    return Image.fromarray(np.where(darkest > WHITE, pixels, np.asarray(coloured)))


def scaled(picture: Image.Image, factor: float) -> Image.Image:
    """Draw the picture at another size about its middle, with the colour of its corner around it."""
    width, height = picture.size
    size = max(1, round(width * factor)), max(1, round(height * factor))
    canvas = Image.new("RGB", picture.size, picture.getpixel((0, 0)))  # type: ignore[arg-type]
    canvas.paste(picture.resize(size, Image.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def turned(picture: Image.Image, how: Image.Transpose) -> Image.Image:
    """Turn by a quarter or a half; the size stays, also where height and width differ."""
    return picture.transpose(how).resize(picture.size)


def _tint(name: str, hue: int) -> Change:
    said = (f"in {name}", f"make it {name}", f"the same but {name}", f"{name} instead", f"coloured {name}")
    stem = name.removesuffix("e") if name in ("orange", "blue", "purple") else name
    stem = "redd" if name == "red" else stem
    return Change(lambda picture: tinted(picture, hue), said, (f"{stem}ish", f"somewhat {stem}ish"))


CHANGES: dict[str, Change] = {
    **{name: _tint(name, hue) for name, hue in HUES.items()},
    "grey": Change(
        lambda p: ImageOps.grayscale(p).convert("RGB"),
        ("in grey", "black and white", "without colour", "make it grey"),
        ("greyish", "colourless"),
    ),
    "negative": Change(
        ImageOps.invert, ("inverted", "as a negative", "invert its colours"), ("inversion", "the negatives")
    ),
    "left": Change(
        lambda p: turned(p, Image.Transpose.ROTATE_90),
        ("turned to the left", "turn it left", "a quarter turn left", "lying on its left side"),
        ("leftwards", "rotated leftwards"),
    ),
    "right": Change(
        lambda p: turned(p, Image.Transpose.ROTATE_270),
        ("turned to the right", "turn it right", "a quarter turn right", "lying on its right side"),
        ("rightwards", "rotated rightwards"),
    ),
    "upside down": Change(
        lambda p: turned(p, Image.Transpose.ROTATE_180),
        ("upside down", "turned upside down", "standing on its head", "put it upside down"),
        ("upside-downwards", "the downside up"),
    ),
    "mirrored": Change(ImageOps.mirror, ("mirrored", "mirror it", "seen in a mirror"), ("mirroring", "mirrorwise")),
    "smaller": Change(
        lambda p: scaled(p, 0.5), ("smaller", "make it small", "half as big"), ("smallish", "at a smallness")
    ),
    "larger": Change(lambda p: scaled(p, 1.7), ("larger", "make it large", "seen close"), ("largish", "enlarged")),
    "darker": Change(
        lambda p: ImageEnhance.Brightness(p).enhance(0.45),
        ("darker", "make it dark", "in the dark"),
        ("darkish", "darkened"),
    ),
    "brighter": Change(
        lambda p: Image.eval(p, lambda x: round(255 - (255 - x) * 0.4)),
        ("brighter", "make it bright", "in bright light"),
        ("brightish", "brightened"),
    ),
}


def changed(
    picture: np.ndarray, count: int, rng: np.random.Generator, *, kinds: tuple[str, ...], unseen: bool
) -> tuple[np.ndarray, list[str]]:
    """Change a picture uint8 `[H, W, 3]` in `count` ways: uint8 `[count, H, W, 3]`, and what was asked for each time.

    Results that look like the picture, or like one another, are left out as long as there are others: no words tell
    them apart (a circle turned upside down, say).
    """
    whole, found, asked = Image.fromarray(picture), [], []
    spare: list[tuple[np.ndarray, str]] = []
    for place in rng.permutation(len(kinds)):
        change = CHANGES[kinds[int(place)]]
        phrases = change.unseen if unseen else change.said
        result, phrase = np.asarray(change.apply(whole)), phrases[int(rng.integers(len(phrases)))]
        if all(np.abs(result.astype(np.int16) - other).mean() >= SEEN for other in (picture, *found)):
            found.append(result)
            asked.append(phrase)
            if len(found) == count:
                break
        else:
            spare.append((result, phrase))
    while len(found) < count:
        result, phrase = spare[(count - len(found)) % len(spare)] if spare else (found[0], asked[0])
        found.append(result)
        asked.append(phrase)
    return np.stack(found), asked
