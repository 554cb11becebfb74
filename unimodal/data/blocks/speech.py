"""Speech with its transcripts, and masks over frames and channels of a backbone."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from unimodal.data.audio import crop_or_pad, sound_length, span_mask
from unimodal.data.blocks.inputs import Inputs, find_column
from unimodal.data.blocks.sounds import OBVIOUS, Sounds
from unimodal.data.blocks.transcripts import Transcripts
from unimodal.data.blocks.used import headers, warn_of_unused
from unimodal.data.bucketing import Buckets
from unimodal.data.cache import cached, stood_in
from unimodal.data.dataset import Dataset, Source
from unimodal.data.marked import marks
from unimodal.data.skipped import LEDGER, Where
from unimodal.data.sources import first, open_source
from unimodal.data.spec import STAND_IN, ArraySpec
from unimodal.data.transcripts import Alphabet
from unimodal.data.values import id_at
from unimodal.errors import RecordError, UsageError


@dataclasses.dataclass(frozen=True)
class TranscribedSpeech:
    """Recordings, or marked stretches of them, with what is said in each."""

    where: str  # what messages call the task, such as tasks.ctc
    source: str  # a data source
    sounds: Sounds  # the recordings
    transcripts: Transcripts  # what is said in them
    letters: Alphabet  # the characters told apart
    labelled: int = 0  # use so many training examples only; 0: all
    buckets: tuple[float, ...] = ()  # seconds that training batches of like length are cut to; (): none

    def inputs(self, frames: Callable[[int], int]) -> Inputs:
        """`audio` `[samples]`, its `length`, and the `text` as ids `[characters]`.

        The length is 0 where an example is of no use: what is left of the sound does not hold the whole transcript.
        frames: samples → frames, which need to be as many as the characters.
        """
        spec = {**self.sounds.spec, "text": self.transcripts.spec(self.letters.classes)}

        def dataset(split: str) -> Dataset:
            def example(record: Any, _rng: np.random.Generator) -> dict[str, Any]:
                return self._example(record, split)

            return Dataset(self.recordings(split, frames), example, self._buckets(split, frames))

        return Inputs(spec, dataset)

    def recordings(self, split: str, frames: Callable[[int], int]) -> Source:
        """Records of id, decoded audio and text; those of training are checked, and as many as are used."""
        found = self._recordings(split)
        if split == "train":
            found = first(found, self.labelled) if self.labelled else found
            self._check(frames)
        return found

    def lengths(self, split: str, frames: Callable[[int], int]) -> Iterator[tuple[int, bool]]:
        """Of each of `recordings` its samples, as the file's header says, and whether it can be learned; 0 and False for what
        cannot be read, which is listed."""
        for samples, text in self._each(split):
            yield samples, text is not None and not self._unusable(samples, text, frames)

    def scored(self) -> list[str]:
        """The transcripts of validation's recordings that are heard whole; an evaluation leaves out the others."""
        found = self._each("validation")
        return [text for samples, text in found if text is not None and 0 < samples <= self.sounds.samples]

    def _each(self, split: str) -> Iterator[tuple[int, str | None]]:
        """Samples and spelt transcript of each recording; 0 and None for what cannot be read, which is listed."""
        marked, where = self.sounds.segments, Where(self.source, split)
        records = self._recordings(split) if marked else open_source(self.source, split)
        records = first(records, self.labelled) if self.labelled and split == "train" else records
        for index in range(len(records)):
            name = None
            try:
                record = records[index]
                name = str(record["id"])
                if record.get(STAND_IN):  # what it stands for is listed
                    yield 0, None
                    continue
                audio = record[find_column(record, "audio" if marked else self.sounds.column, OBVIOUS, "a sound")]
                samples = len(audio) if marked else sound_length(audio, self.sounds.rate, name, record.get("rate"))
                text = self.transcripts.spell(record["text"]) if marked else self.transcripts.of(record)
            except RecordError as error:
                LEDGER.note(where, name or id_at(records, index), error, len(records))
                yield 0, None
                continue
            LEDGER.looked(where)
            yield samples, text

    def _buckets(self, split: str, frames: Callable[[int], int]) -> Buckets | None:
        if not self.buckets or split != "train":
            return None
        lengths = np.array([samples if fine else 0 for samples, fine in self.lengths(split, frames)])
        edges = sorted({min(int(edge * self.sounds.rate), self.sounds.samples) for edge in self.buckets})
        kept = {edge: frames(edge) for edge in (*edges, self.sounds.samples)}

        def cut(batch: Mapping[str, np.ndarray], edge: int) -> dict[str, np.ndarray]:
            ends = {"audio": edge, "masked": kept[edge]}
            made = {name: array[:, : ends[name]] if name in ends else array for name, array in batch.items()}
            # What stands in for a bad recording, or has a wrong header, may be longer: cut, it would not hold its transcript.
            return {**made, "length": np.where(made["length"] > edge, np.int32(0), made["length"])}

        return Buckets(lengths, (*edges, self.sounds.samples), cut)

    def _example(self, record: Any, split: str) -> dict[str, Any]:
        audio, length = crop_or_pad(record["audio"], self.sounds.samples)
        text, whole = self.transcripts.ids(self.letters, self.transcripts.spell(record["text"]))
        if not whole and split != "train":
            raise UsageError(f"{record['id']}: a transcript of {len(record['text'])} characters, where {self._room}")
        if not whole or len(record["audio"]) > self.sounds.samples:
            length = 0
        return {"audio": audio, "length": np.int32(length), "text": text}

    @property
    def _room(self) -> str:
        return f"{self.where}.transcripts.characters={self.transcripts.characters}"

    def _recordings(self, split: str) -> Source:
        """Records of id, decoded audio and text."""
        opened = self.sounds.open(self.source, split)
        if self.sounds.segments:  # stretches of recordings that are kept already
            return stood_in(opened, Where(self.source, split))

        def decode(record: Any) -> dict[str, Any]:
            return {"id": record["id"], "audio": self.sounds.read(record), "text": self.transcripts.of(record)}

        return cached(opened, decode, where=Where(self.source, split))

    def _check(self, frames: Callable[[int], int]) -> None:
        """Warn before the first step of what cannot be learned, or will be scored as nothing heard, and why.

        Raises UsageError where that is so of most of a split, and for transcripts of validation that have no room.
        """
        held_out = self.transcripts.all(self.source, "validation", self.sounds.segments)
        if (longest := max(map(len, held_out), default=0)) > self.transcripts.characters:
            raise UsageError(
                f"{self.where}, {self.source} validation: a transcript of {longest} characters, where {self._room}"
            )
        for split, what in (("train", "will be skipped"), ("validation", "will be left out of the score")):
            found = list(self._lengths(split))
            if not found:
                raise UsageError(f"{self.where}, {self.source} {split}: none of the recordings looked at can be read")
            reasons = [self._unusable(*pair, frames) for pair in found]
            if split == "validation":  # what is short is scored
                reasons = [reason if reason.startswith("longer") else "" for reason in reasons]
            advice = self._advice([samples / self.sounds.rate for samples, _ in found])
            warn_of_unused(f"{self.where}, {self.source} {split}", reasons, what, advice)

    def _unusable(self, samples: int, text: str, frames: Callable[[int], int]) -> str:
        """Why an example of so many samples cannot be learned; "" where it can."""
        if samples > self.sounds.samples:
            return f"longer than sounds.seconds={self.sounds.seconds:g}"
        if len(text) > self.transcripts.characters:
            return f"with more than transcripts.characters={self.transcripts.characters}"
        # CTC needs a blank between equal neighbours.
        repeats = sum(a == b for a, b in zip(text, text[1:], strict=False))
        return "too short for their transcript" if frames(samples) < max(1, len(text) + repeats) else ""

    def _advice(self, seconds: list[float]) -> str:
        """Which sounds.seconds would have room for all recordings, or nearly all."""
        most, nearly = (math.ceil(np.percentile(seconds, q, method="higher")) for q in (100, 95))
        advice = f"sounds.seconds={most} has room for all" if most > self.sounds.seconds else ""
        return advice + (f", {nearly} for 95 in 100" if self.sounds.seconds < nearly < most else "")

    def _lengths(self, split: str) -> Iterable[tuple[int, str]]:
        """Samples and spelt transcript of the recordings, or of the first thousand as they are spread over the split."""
        opened, marked = open_source(self.source, split), self.sounds.segments
        if marked:
            found = (mark for marks_ in marks(opened, marked) for mark in marks_)
            return (((end - start) * self.sounds.rate // 1000, self.transcripts.spell(t)) for start, end, t in found)
        return ((samples, self.transcripts.of(record)) for record, samples in headers(self.sounds, opened))


def with_masks(
    made: Inputs,
    frames: Callable[[int], int],
    time: tuple[float, int],
    channel: tuple[float, int] | None = None,
    *,
    width: int = 0,
    least: int = 0,
    validation: bool = False,
) -> Inputs:
    """Inputs of `audio` with span masks (see `span_mask`): `masked` frames, and `silenced` channels of a backbone.

    frames: samples → frames. time, channel: the share that spans would cover if they never overlapped, and the length of
    one; None: no channels. width: how many channels there are. least: spans in each example. validation: whether its
    examples are masked too.
    """
    longest = made.spec["audio"].shape[0]
    count = frames(longest)
    # Ask `frames` here alone: it belongs to a tokenizer, which worker processes would import JAX for.
    needed = np.array([bisect.bisect_left(range(longest), n, key=frames) for n in range(1, count + 1)])
    spec = {"masked": ArraySpec((count,), np.bool_)}
    if channel is not None:
        spec["silenced"] = ArraySpec((width,), np.bool_)

    def mask(example: Any, rng: np.random.Generator) -> dict[str, Any]:
        valid = int(np.searchsorted(needed, example["length"], side="right"))
        masks = {"masked": span_mask(count, rng, *time, min_masks=least, valid=valid)}
        if channel is not None:
            masks["silenced"] = span_mask(width, rng, channel[0], min(width, channel[1]))
        return {**example, **masks}

    def nothing(example: Any, _rng: np.random.Generator) -> dict[str, Any]:
        return {**example, **{name: np.zeros(array.shape, np.bool_) for name, array in spec.items()}}

    def dataset(split: str) -> Dataset:
        return made.dataset(split).map(mask if validation or split == "train" else nothing)

    return Inputs({**made.spec, **spec}, dataset)
