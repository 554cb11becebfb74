"""Recordings, as a task's config describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from unimodal.data.audio import crop_or_pad, decode_audio, normalize
from unimodal.data.blocks.inputs import Part, brought, find_column
from unimodal.data.dataset import Source
from unimodal.data.marked import segments
from unimodal.data.sources import open_source
from unimodal.data.spec import ArraySpec
from unimodal.data.stored import STORE
from unimodal.errors import UsageError

OBVIOUS = ("audio", "sound", "speech", "wav", "recording")


@dataclasses.dataclass(frozen=True)
class Sounds:
    """One recording per record, mono at `rate` Hz, of at most `seconds`."""

    column: str = ""  # "": the first of audio, sound, speech, wav, recording
    rate: int = brought(16_000)  # Hz; other rates are resampled
    seconds: float = 2.0  # of sound in an example: what is longer is cropped, what is shorter is padded
    segments: str = ""  # a column with a list of [start, end, what], in ms: each of these is then an example of its own
    normalize: bool = brought(True)  # zero mean and unit variance over each recording

    def __post_init__(self) -> None:
        if self.rate < 1 or self.seconds <= 0:
            raise UsageError(f"sounds.rate and sounds.seconds must be above 0, but are {self.rate} and {self.seconds}")

    @property
    def samples(self) -> int:
        """Samples in an example."""
        return int(self.seconds * self.rate)

    def read(self, record: Mapping[str, Any]) -> np.ndarray:
        """The whole recording, float32 `[samples]`."""
        found = find_column(record, self.column, OBVIOUS, "a sound")
        value, decode = record[found], partial(decode_audio, name=record["id"], found_rate=record.get("rate"))
        if isinstance(value, bytes):
            audio = STORE.find(value, f"sound {self.rate}", lambda: decode(value, self.rate))
        else:
            audio = decode(value, self.rate)
        return normalize(audio) if self.normalize else audio

    def decode(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record with its recording decoded, under "audio"."""
        return {**record, "audio": self.read(record)}

    def open(self, source: str, split: str, *, window: int | None = None) -> Source:
        """The records of a split, or their marked stretches as records of id, audio and text, decoded.

        window: that many samples around the middle of each stretch, instead of the stretch itself.
        """
        opened = open_source(source, split)
        if not self.segments:
            return opened
        return segments(opened, self.decode, self.segments, self.rate, window=window)

    def part(self, *, random: bool | None = None, check: Callable[[], None] | None = None) -> Part:
        """float32 `audio` `[samples]`, normalised, and int32 `length`, how many of its samples are real.

        random: whether a long recording is cropped at a random place (None: in training only) or at its beginning.
        check: called once before training.
        """

        def make(audio: np.ndarray, rng: np.random.Generator, training: bool) -> dict[str, Any]:
            anywhere = training if random is None else random
            cropped, length = crop_or_pad(audio, self.samples, rng if anywhere else None)
            return {"audio": cropped, "length": np.int32(length)}

        return Part(self.spec, self.read, make, check)

    @property
    def spec(self) -> dict[str, ArraySpec]:
        """The spec of `audio` and `length`."""
        return {
            "audio": ArraySpec((self.samples,), np.float32, -1, 1),
            "length": ArraySpec((), np.int32, self.samples, self.samples + 1),
        }
