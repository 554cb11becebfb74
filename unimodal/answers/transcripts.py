"""Transcripts of recordings by connectionist temporal classification (Graves 2006)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from unimodal.answers.answer import SOUND, Answer, Asked, Record, Row, sound_row, sound_windows
from unimodal.answers.embeddings import sound_features
from unimodal.errors import UsageError
from unimodal.evaluation.transcription import Letters, frame_labels, heard


def transcript_answer(
    letters: Callable[[], Letters],
    row: Callable[[Record], Row],
    logits: Callable[..., jax.Array],
    frames: Callable[..., jax.Array],
    *,
    beam: int = 0,
    windows: Callable[[Record], list[Row]] | None = None,
    shift: int = 0,
) -> Answer:
    """The text of logits [B,T,classes], of which frames(model, batch) [B] are real. beam: width of the search.

    windows: a long recording as rows that overlap, each of which begins `shift` frames after the one before.
    """
    if beam < 0:
        raise UsageError(f"beam must be 0 or more, but is {beam}")

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return frame_labels(logits(model, batch), frames(model, batch), whole=beam > 0)

    def say(found: Row) -> dict[str, Any]:
        if not np.isfinite(found["likeliest"]):
            raise UsageError("the model gave no number for it (NaN)")
        return {"transcript": heard(letters(), {name: value[None] for name, value in found.items()}, 0, beam)}

    join = partial(joined_frames, shift=shift) if windows else None
    return Answer("transcript", SOUND, row, predict, say, rows=windows, join=join)


def what_was_said(task: Any, model: Any, asked: Asked) -> list[Answer]:
    """What a task with `sounds` and an alphabet hears, as its method `answers`: the transcript, and the features of the sound."""
    config = model.tokenizers[task.tokenizer].config
    # Windows overlap by a third.
    shift = max(1, 2 * task.sounds.samples // 3 // config.hop)
    frames = lambda _, batch: config.frames(batch["length"])  # noqa: E731
    windows = sound_windows(task.sounds, shift * config.hop)
    how: dict[str, Any] = dict(beam=asked.beam or task.beam, windows=windows, shift=shift)
    said = transcript_answer(lambda: task.letters, sound_row(task.sounds), task.logits, frames, **how)
    return [said, sound_features(task, task.hidden)]


def joined_frames(parts: Sequence[Row], shift: int) -> Row:
    """The frames of windows that overlap, one after another. In the middle of an overlap the next window takes over: a frame
    at the edge of a window has heard only half of what is around it."""
    found: dict[str, list[np.ndarray]] = {"path": [], "log_probabilities": []}
    begin = 0
    for i, part in enumerate(parts):
        frames, last = int(part["frames"]), i == len(parts) - 1
        end = frames if last else shift + (frames - shift) // 2
        for name, kept in found.items():
            if name in part:
                kept.append(part[name][begin:end])
        begin = end - shift
    arrays = {name: np.concatenate(kept) for name, kept in found.items() if kept}
    likeliest = np.sum([part["likeliest"] for part in parts])  # NaN where one of them is
    return {**arrays, "frames": np.int32(len(arrays["path"])), "likeliest": likeliest}
