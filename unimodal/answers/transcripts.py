"""Transcripts of recordings by connectionist temporal classification (Graves 2006)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from unimodal.answers.answer import SOUND, Answer, Record, Row
from unimodal.errors import UsageError
from unimodal.evaluation.transcription import Letters, frame_labels, heard


def transcript_answer(
    letters: Callable[[], Letters],
    row: Callable[[Record], Row],
    logits: Callable[..., jax.Array],
    frames: Callable[..., jax.Array],
    *,
    beam: int = 0,
) -> Answer:
    """The text of logits [B,T,classes], of which frames(model, batch) [B] are real. beam: width of the search."""
    if beam < 0:
        raise UsageError(f"beam must be 0 or more, but is {beam}")

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return frame_labels(logits(model, batch), frames(model, batch), whole=beam > 0)

    def say(found: Row) -> dict[str, Any]:
        if not np.isfinite(found["likeliest"]):
            raise UsageError("the model gave no number for it (NaN)")
        return {"transcript": heard(letters(), {name: value[None] for name, value in found.items()}, 0, beam)}

    return Answer("transcript", SOUND, row, predict, say)
