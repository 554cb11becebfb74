"""Samples of `unimodal.evaluation.samples`: texts, gaps filled, pictures and sounds."""

import math
from typing import Any

import numpy as np

from unimodal.evaluation.samples import AudioSample, FilledText, ImageSample, PictureRow, Sample, TextSample
from unimodal.report.views.media import data_uri, encode_wav, png_uri, reduced
from unimodal.report.views.text import visible_blank

_SOUND_RATE = 16_000


def sample_view(sample: Sample, sound_left: list[float]) -> dict[str, Any]:
    if isinstance(sample, TextSample):
        return {"kind": "text", "sample": sample}
    if isinstance(sample, FilledText):
        return {"kind": "filled", "sample": sample, **_filled_view(sample)}
    if isinstance(sample, ImageSample):
        return {"kind": "image", "sample": sample, **_image_view(sample)}
    if isinstance(sample, PictureRow):
        pictures = [(what, png_uri(reduced(picture))) for what, picture in sample.pictures]
        return {"kind": "row", "sample": sample, "pictures": pictures}
    if isinstance(sample, AudioSample):
        return {"kind": "audio", "sample": sample, **_audio_view(sample, sound_left)}
    raise TypeError(f"the report cannot draw a {type(sample).__name__}; see unimodal.evaluation.samples.Sample")


def _filled_view(sample: FilledText) -> dict[str, Any]:
    pieces: list[dict[str, Any]] = []
    done = 0
    for start, end, guess, truth in sample.spans:
        pieces.append({"text": sample.text[done:start]})
        pieces.append({"guess": visible_blank(guess), "truth": visible_blank(truth), "right": guess == truth})
        done = end
    pieces.append({"text": sample.text[done:]})
    return {"pieces": pieces, "right": sum(guess == truth for _, _, guess, truth in sample.spans)}


def _image_view(sample: ImageSample) -> dict[str, Any]:
    guesses = [
        {"label": label, "share": 100 * float(np.clip(np.nan_to_num(chance), 0, 1)), "right": label == sample.truth}
        for label, chance in sample.guesses
    ]
    right = None if sample.truth is None or not guesses else bool(guesses[0]["right"])
    return {"picture": png_uri(reduced(sample.image)), "guesses": guesses, "right": right}


def _audio_view(sample: AudioSample, sound_left: list[float]) -> dict[str, Any]:
    seconds = len(sample.waveform) / sample.rate
    sound = None
    if 0 < seconds <= sound_left[0]:
        sound_left[0] -= seconds
        fold = math.ceil(sample.rate / _SOUND_RATE)
        folded = sample.waveform[: len(sample.waveform) // fold * fold].reshape(-1, fold).mean(axis=1)
        sound = data_uri("audio/wav", encode_wav(folded, round(sample.rate / fold)))
    segments = [
        {
            "left": 100 * start / seconds,
            "width": 100 * (min(end, seconds) - start) / seconds,
            "label": label,
            "verdict": "right" if label.endswith("right") else "wrong" if label.endswith("wrong") else "",
            "times": f"{start:.2f}–{end:.2f} s",
        }
        for start, end, label in sample.segments
        if start < seconds
    ]
    judged = [segment["verdict"] for segment in segments if segment["verdict"]]
    score = f"{judged.count('right')} of {len(judged)} picked right" if judged else ""
    return {
        "seconds": seconds,
        "sound": sound,
        "segments": segments,
        "shape": _outline(sample.waveform),
        "score": score,
    }


def _outline(waveform: np.ndarray, columns: int = 480) -> str:
    """The closed outline of the waveform in a box of `columns` × 100: its lowest and highest value in each column."""
    values = np.nan_to_num(waveform.astype(np.float32))
    if not len(values):
        return ""
    loudest = max(float(np.abs(values).max()), 1e-6)
    edges = np.unique(np.linspace(0, len(values), min(columns, len(values)) + 1).astype(int))[:-1]
    high = 50 - 48 * np.maximum.reduceat(values, edges) / loudest
    low = 50 - 48 * np.minimum.reduceat(values, edges) / loudest
    x = np.linspace(0, columns, len(edges)).round(1)
    there = [f"{a:g} {b:.0f}" for a, b in zip(x, high, strict=True)]
    back = [f"{a:g} {b:.0f}" for a, b in zip(x[::-1], low[::-1] + 0.5, strict=True)]
    return "M" + "L".join([*there, *back]) + "Z"
