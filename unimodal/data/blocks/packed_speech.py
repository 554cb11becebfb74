"""Several recordings with their transcripts in one row of samples, each with the frames that it has alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from unimodal.data.audio import span_mask
from unimodal.data.blocks.inputs import Inputs
from unimodal.data.blocks.speech import TranscribedSpeech
from unimodal.data.dataset import Dataset
from unimodal.data.filling import Packing, Together, filled
from unimodal.data.shares import refuse_weights
from unimodal.data.skipped import Where
from unimodal.data.spec import ArraySpec
from unimodal.errors import UsageError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PackedSpeech:
    """Examples of `audio` [samples]; of each of `pack.most` recordings its `start` and `length` in samples, 0 for none, and its
    `text` as ids [characters]; `masked` frames, and the `silenced` channels of each recording [width], where masks are asked
    for. Recordings that cannot be learned are in no row."""

    speech: TranscribedSpeech
    pack: Packing
    frames: Callable[[int], int]  # samples → frames
    hop: int  # samples from frame to frame, at which recordings begin
    time: tuple[float, int] = (
        0.0,
        1,
    )  # the share of frames that spans would cover if they never overlapped, and a span
    channel: tuple[float, int] = (0.0, 1)  # the same for channels
    width: int = 0  # how many channels there are

    @property
    def inputs(self) -> Inputs:
        sounds, count = self.speech.sounds, self.pack.most
        units = int(self.pack.row * sounds.rate) // self.hop
        if units < self._units(sounds.samples):
            raise UsageError(
                f"{self.speech.where}.pack.row={self.pack.row:g} has no room for sounds.seconds={sounds.seconds:g}"
            )
        samples = units * self.hop
        text = self.speech.transcripts.spec(self.speech.letters.classes)
        spec = {
            "audio": ArraySpec((samples,), np.float32, -1, 1),
            "start": ArraySpec((count,), np.int32, 0, 1),
            "length": ArraySpec((count,), np.int32, 0, max(1, samples // count)),
            "text": dataclasses.replace(text, shape=(count, *text.shape)),
        }
        if self.time[0]:
            spec["masked"] = ArraySpec((self.frames(samples),), np.bool_)
        if self.channel[0]:
            spec["silenced"] = ArraySpec((count, self.width), np.bool_)
        return Inputs(spec, lambda split: self._dataset(split, units))

    def _dataset(self, split: str, units: int) -> Dataset:
        recordings = self.speech.recordings(split, self.frames)
        refuse_weights(recordings, "rows of several recordings")
        lengths = [samples if fine else 0 for samples, fine in self.speech.lengths(split, self.frames)]
        sizes = [self._units(length) for length in lengths]
        rows, where = filled(sizes, units, most=self.pack.most, fit=self.pack.fit), Where(self.speech.source, split)
        if not rows:
            raise UsageError(f"{where}: no recording can be learned")
        share = sum(lengths) / (units * self.hop * len(rows))
        logger.info("%s: %d recordings in %d rows, %.1f %% filled", where, len(lengths), len(rows), 100 * share)

        def example(record: Any, rng: np.random.Generator) -> dict[str, Any]:
            planned = [sizes[place] * self.hop for place in record["places"]]
            return self._row(record["records"], planned, units * self.hop, rng)

        return Dataset(Together(recordings, tuple(map(tuple, rows))), example)

    def _units(self, samples: int) -> int:
        return -(-samples // self.hop)

    def _row(self, records: list[Any], planned: list[int], samples: int, rng: np.random.Generator) -> dict[str, Any]:
        count, transcripts = self.pack.most, self.speech.transcripts
        row: dict[str, Any] = {
            "audio": np.zeros(samples, np.float32),
            "start": np.zeros(count, np.int32),
            "length": np.zeros(count, np.int32),
            "text": np.zeros((count, transcripts.characters), np.int32),
        }
        if self.time[0]:
            row["masked"] = np.zeros(self.frames(samples), np.bool_)
        if self.channel[0]:
            row["silenced"] = np.zeros((count, self.width), np.bool_)
        start = 0  # of the next one
        for i, (record, room) in enumerate(zip(records, planned, strict=True)):
            begin, start = start, start + room
            row["start"][i] = begin
            text, whole = transcripts.ids(self.speech.letters, transcripts.spell(record["text"]))
            # A header may have said a little less. What stands in for a bad recording may have no room at all, and cut it would
            # not hold its transcript: its place stays empty.
            if not whole or len(record["audio"]) > room + self.hop:
                continue
            audio = record["audio"][:room]
            row["audio"][begin : begin + len(audio)] = audio
            row["length"][i], row["text"][i] = len(audio), text
            first, frames = begin // self.hop, max(0, self.frames(len(audio)))
            if self.time[0]:
                row["masked"][first : first + frames] = span_mask(frames, rng, *self.time)
            if self.channel[0]:
                share, span = self.channel
                row["silenced"][i] = span_mask(self.width, rng, share, min(self.width, span))
        return row
