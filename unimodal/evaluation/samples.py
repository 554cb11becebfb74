"""Samples for the report: small records of inputs, guesses and truths that it knows how to draw.

Everything here is numpy and plain Python, so a sample can be made on any host, kept, and drawn later. Shapes are
checked when a sample is made: a wrong shape is a programming error and raises a ValueError that names the field.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


def _check_picture(field: str, image: Any) -> None:
    good = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
    _check(good and image.size > 0, f"{field} must be uint8 [height, width, 3], got {_describe(image)}")


@dataclass(frozen=True)
class TextSample:
    """A prompt and what the model wrote after it; `truth` is what really followed, where that is known.

    again: how `predict` is asked the same, as (option, value); () for a sample that is no answer to a prompt alone.
    """

    prompt: str
    output: str
    truth: str | None = None
    note: str = ""
    again: tuple[tuple[str, float], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        _check(isinstance(self.prompt, str), f"TextSample.prompt must be a string, got {_describe(self.prompt)}")
        _check(isinstance(self.output, str), f"TextSample.output must be a string, got {_describe(self.output)}")


@dataclass(frozen=True)
class FilledText:
    """A text with gaps: each span is (start, end, guess, truth), characters `text[start:end]` being what was hidden.

    Offsets count characters of `text` (for one-byte encodings also bytes). Spans are in order and do not overlap.
    """

    text: str
    spans: tuple[tuple[int, int, str, str], ...]
    note: str = ""

    def __post_init__(self) -> None:
        _check(isinstance(self.text, str), f"FilledText.text must be a string, got {_describe(self.text)}")
        before = 0
        for span in self.spans:
            _check(len(span) == 4, f"FilledText.spans holds (start, end, guess, truth), got {span!r}")
            start, end = span[0], span[1]
            _check(
                before <= start < end <= len(self.text),
                f"FilledText.spans must be in order, not empty and inside a text of {len(self.text)} characters, "
                f"got {start}..{end} after {before}",
            )
            before = end

    def with_gaps(self, hole: str) -> str:
        """The text with `hole` in the place of every span."""
        pieces, before = [], 0
        for start, end, *_ in self.spans:
            pieces += [self.text[before:start], hole]
            before = end
        return "".join([*pieces, self.text[before:]])


@dataclass(frozen=True, eq=False)
class ImageSample:
    """A picture uint8 [H, W, 3] and the model's (label, probability) guesses, best first: classes or found words."""

    image: np.ndarray
    guesses: tuple[tuple[str, float], ...]
    truth: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        _check_picture("ImageSample.image", self.image)
        for guess in self.guesses:
            _check(len(guess) == 2, f"ImageSample.guesses holds (label, probability), got {guess!r}")
            # A hair of slack: a float32 softmax may sum to just over one. NaN passes, so that a run that failed has a report.
            outside = guess[1] < -1e-3 or guess[1] > 1.001
            _check(not outside, f"ImageSample.guesses: probability must lie in [0, 1], got {guess!r}")


@dataclass(frozen=True, eq=False)
class PictureRow:
    """Pictures that belong together, left to right: (what it is, uint8 [H, W, 3]), such as original, masked, rebuilt."""

    pictures: tuple[tuple[str, np.ndarray], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for pair in self.pictures:
            _check(len(pair) == 2, f"PictureRow.pictures holds (what it is, picture), got {len(pair)} things")
            _check_picture("PictureRow.pictures", pair[1])


@dataclass(frozen=True, eq=False)
class AudioSample:
    """A waveform float32 [S] in [-1, 1] at `rate` Hz, and (start, end, label) segments in seconds.

    Labels say what a segment is: "masked", "picked right", "picked wrong", or the code of a frame. A label that ends
    in "right" or "wrong" is drawn as such. output: what the model heard in it; truth: what was said.
    """

    waveform: np.ndarray
    rate: int
    segments: tuple[tuple[float, float, str], ...] = ()
    note: str = ""
    output: str | None = None
    truth: str | None = None

    def __post_init__(self) -> None:
        wave = self.waveform
        good = isinstance(wave, np.ndarray) and wave.dtype == np.float32 and wave.ndim == 1
        _check(good, f"AudioSample.waveform must be float32 [samples], got {_describe(wave)}")
        _check(
            int(self.rate) == self.rate and self.rate > 0, f"AudioSample.rate must be a positive int, got {self.rate!r}"
        )
        for segment in self.segments:
            _check(len(segment) == 3, f"AudioSample.segments holds (start, end, label), got {segment!r}")
            start, end, _ = segment
            _check(0 <= start <= end, f"AudioSample.segments: need 0 <= start <= end in seconds, got {segment!r}")


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Attention weights float32 [H, T, S]: head, query, key.

    With `grid` = (rows, columns) the S keys are image patches in row order, drawn over `image` uint8 [H, W, 3] if
    given. With `labels` (one per key) they are tokens. With neither, bare positions.
    """

    title: str
    image: np.ndarray | None
    labels: tuple[str, ...] | None
    weights: np.ndarray
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        weights = self.weights
        good = isinstance(weights, np.ndarray) and weights.ndim == 3 and np.issubdtype(weights.dtype, np.floating)
        _check(good, f"AttentionMap.weights must be float [heads, queries, keys], got {_describe(weights)}")
        _check(weights.size > 0, f"AttentionMap.weights must not be empty, got {_describe(weights)}")
        keys = weights.shape[2]
        if self.image is not None:
            _check_picture("AttentionMap.image", self.image)
            _check(self.grid is not None, "AttentionMap.image needs a grid (rows, columns) to lay the weights over")
        if self.grid is not None:
            rows, columns = self.grid
            _check(rows * columns == keys, f"AttentionMap.grid {rows} x {columns} must cover {keys} keys")
        if self.labels is not None:
            _check(len(self.labels) == keys, f"AttentionMap.labels: {len(self.labels)} labels for {keys} keys")


Sample = TextSample | FilledText | ImageSample | PictureRow | AudioSample | AttentionMap
