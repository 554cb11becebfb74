"""Sounds with what the model hears in them: a class, a transcript, or the frames that were hidden from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from unimodal.data.blocks import Labels, Sounds
from unimodal.data.transcripts import Alphabet
from unimodal.evaluation.evaluation import Shown
from unimodal.evaluation.samples import AudioSample, Sample
from unimodal.evaluation.transcription import heard
from unimodal.model import Model

Show = Callable[[Model, Shown], list[Sample]]


def loud(audio: np.ndarray) -> np.ndarray:
    """Samples [S] scaled so that the largest is 1, float32. Silence stays silent."""
    return (audio / max(1e-6, float(np.abs(audio).max(initial=0.0)))).astype(np.float32)


def classified_sounds(source: str, sounds: Sounds, labels: Labels, samples: Callable[[Model], int]) -> Show:
    """Show a few stretches, or recordings, with the likeliest class. Rows: what `classification.guesses` gives.

    samples: how many of a stretch the model sees.
    """

    def show(model: Model, shown: Shown) -> list[Sample]:
        names = labels.names(source, sounds.segments)
        records = sounds.open(source, "validation", window=samples(model))
        found: list[Sample] = []
        for i, place in enumerate(shown.index[:4]):
            record = records[int(place)]
            audio = record["audio"] if sounds.segments else sounds.read(record)
            guess, truth = names[int(shown.rows["best"][i, 0])], names[int(shown.rows["label"][i])]
            found.append(AudioSample(loud(audio), sounds.rate, note=str(record["id"]), output=guess, truth=truth))
        return found

    return show


def transcribed_sounds(sounds: Sounds, letters: Callable[[], Alphabet], beam: int) -> Show:
    """Show a few recordings with what was heard and said. Batch: `audio`, `length`; rows: those of `Transcription`."""

    def show(model: Model, shown: Shown) -> list[Sample]:
        alphabet, found = letters(), []
        for i in range(min(3, len(shown.index))):
            wave = loud(shown.batch["audio"][i][: int(shown.batch["length"][i])])
            output, truth = heard(alphabet, shown.rows, i, beam), alphabet.decode(shown.rows["text"][i])
            found.append(AudioSample(wave, sounds.rate, output=output, truth=truth))
        return found

    return show


def masked_sounds(sounds: Sounds) -> Show:
    """Show where two recordings were masked, and how many of these frames were picked right.

    Batch: `audio` and `masked` [B,T]; rows: those of `distractors.picked`.
    """

    def show(model: Model, shown: Shown) -> list[Sample]:
        found: list[Sample] = []
        masked, rows = shown.batch["masked"], shown.rows
        frame = sounds.seconds / masked.shape[1]
        for i in range(min(2, len(masked))):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], masked[i].astype(np.int8), [0]])))
            segments = tuple(
                (float(a * frame), float(b * frame), "masked") for a, b in zip(edges[::2], edges[1::2], strict=True)
            )
            codes = len({tuple(c) for c in rows["chosen"][i]})
            right = rows["correct"][i] / max(1.0, float(rows["frames"][i]))
            note = f"{right:.0%} of the masked frames picked right; {codes} different codes in {len(masked[i])} frames"
            found.append(AudioSample(loud(shown.batch["audio"][i]), sounds.rate, segments, note))
        return found

    return show
