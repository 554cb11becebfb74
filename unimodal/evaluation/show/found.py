"""Samples of retrieval: a few examples, each with what was found for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unimodal.data.dataset import Source
from unimodal.evaluation.evaluation import Shown
from unimodal.evaluation.samples import AudioSample, ImageSample, Sample, TextSample

FOUND = 4  # of each example


def found_samples(
    shown: Shown,
    source: Source,
    chances: Callable[[np.ndarray], np.ndarray],
    *,
    draw: Mapping[str, Callable[[Mapping[str, Any]], Any]],
    pair: tuple[str, str],
    rate: int,
) -> list[Sample]:
    """The examples that are shown, by their first modality, with the likeliest of all the split's second ones.

    chances: similarities [N] → probabilities [N]. draw: modality → what it reads of a record: a picture, a text, or a
    waveform at `rate` Hz. What cannot be written, a picture or a sound that was found, is called by its text or its id.
    """
    second, places = shown.tally.all("second"), shown.tally.all("index")

    def called(record: Mapping[str, Any]) -> str:
        return draw["text"](record) if "text" in pair else str(record.get("name", record.get("text", record["id"])))

    found: list[Sample] = []
    for i, embedding in zip(shown.index, shown.rows["first"], strict=True):
        p, record = chances(embedding @ second.T), source[int(i)]
        best = tuple((called(source[int(places[k])]), float(p[k])) for k in p.argsort()[::-1][:FOUND])
        shown_first = draw[pair[0]](record)
        said = " | ".join(name for name, _ in best)
        if pair[0] == "image":
            found.append(ImageSample(shown_first, best, called(record)))
        elif pair[0] == "audio":
            wave = (shown_first / max(1e-6, float(np.abs(shown_first).max()))).astype(np.float32)
            found.append(AudioSample(wave, rate, output=said, truth=called(record)))
        else:
            found.append(TextSample(shown_first, said, called(record)))
    return found
