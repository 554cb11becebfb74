"""Log-mel spectrograms with a class: of whole recordings, or of marked stretches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from unimodal.data.audio import crop_or_pad
from unimodal.data.blocks.inputs import Inputs
from unimodal.data.blocks.labels import Labels
from unimodal.data.blocks.sounds import Sounds
from unimodal.data.cache import cached
from unimodal.data.dataset import Dataset
from unimodal.data.skipped import Where
from unimodal.data.spec import ArraySpec
from unimodal.data.spectrogram import kaldi_log_mel

HOP, WINDOW = 0.010, 0.025  # seconds, as Kaldi's filter banks have them


@dataclasses.dataclass(frozen=True)
class Spectrograms:
    """Pictures of sound: mel bins by frames of 10 ms."""

    source: str  # a data source
    sounds: Sounds  # the recordings; how much of one is seen depends on `frames`, not on `sounds.seconds`
    labels: Labels  # the classes
    bins: int  # mel filters
    frames: int  # of 25 ms each, 10 ms apart
    mean: float  # of the log-mel values, which become (x - mean) / (2·deviation)
    deviation: float  # standard deviation of the log-mel values
    shift: float = 0.0  # seconds by which training moves a stretch, at most
    blank: tuple[int, int] = (0, 0)  # bins and frames that training blanks, at most (Park 2019)

    @property
    def samples(self) -> int:
        """Count the samples that make the frames."""
        return round(self.sounds.rate * HOP) * (self.frames - 1) + round(self.sounds.rate * WINDOW)

    @property
    def inputs(self) -> Inputs:
        """float32 `spectrogram` `[bins, frames, 1]` and `label`."""
        classes = self.labels.size(self.source, self.sounds.segments)
        spec = {
            "spectrogram": ArraySpec((self.bins, self.frames, 1), np.float32, -1, 1),
            "label": ArraySpec((), np.int32, 0, classes),
        }
        return Inputs(spec, self._dataset)

    def middle(self, audio: np.ndarray) -> np.ndarray:
        """The middle of a recording, float32 `[bins, frames, 1]`."""
        start = max(0, (len(audio) - self.samples) // 2)
        values = kaldi_log_mel(crop_or_pad(audio[start:], self.samples)[0], self.sounds.rate, bins=self.bins)
        return np.ascontiguousarray(((values - self.mean) / (2 * self.deviation)).T)[:, :, None]

    def _dataset(self, split: str) -> Dataset:
        spare, training = round(self.shift * self.sounds.rate), split == "train"
        if training:
            self.labels.check(self.source, self.sounds.segments)
        opened = self.sounds.open(self.source, split, window=self.samples + 2 * spare)

        def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
            if self.sounds.segments:
                # A stretch has spare samples on both sides, so that it can move.
                start = int(rng.integers(0, 2 * spare + 1)) if training else spare
                audio = record["audio"][start : start + self.samples]
                label = self.labels.number_of(self.source, record["text"], record["id"], self.sounds.segments)
            else:
                audio, _ = crop_or_pad(record["audio"], self.samples, rng if training else None)
                label = record["label"]
            values = kaldi_log_mel(audio, self.sounds.rate, bins=self.bins)
            values = (values - self.mean) / (2 * self.deviation)
            if training:
                values = blanked(values, (self.blank[1], self.blank[0]), rng)
            return {"spectrogram": np.ascontiguousarray(values.T)[:, :, None], "label": np.int32(label)}

        return Dataset(
            opened if self.sounds.segments else cached(opened, self._decode, where=Where(self.source, split)), example
        )

    def _decode(self, record: Mapping[str, Any]) -> dict[str, Any]:
        label = self.labels.number(self.source, record)
        return {"id": record["id"], "audio": self.sounds.read(record), "label": label}


def blanked(values: np.ndarray, most: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Values [frames,bins] with a stripe of up to most[0] frames and one of up to most[1] bins set to zero."""
    if not any(most):
        return values
    values = values.copy()
    for axis, size in enumerate(most):
        width = int(rng.integers(0, min(size, values.shape[axis]) + 1))
        start = int(rng.integers(0, values.shape[axis] - width + 1))
        values[(slice(None),) * axis + (slice(start, start + width),)] = 0.0
    return values
