"""Transcription: how many characters and words are wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from unimodal.data.transcripts import Alphabet
from unimodal.evaluation.decoding import collapse, prefix_beam
from unimodal.evaluation.error_rates import character_edits, error_rates
from unimodal.evaluation.evaluation import Rows, Streamed


class Letters(Protocol):
    """Spelling of ids as text, by an `Alphabet` or a published checkpoint's characters. Id 0 is the blank."""

    def decode(self, ids: Iterable[int]) -> str: ...


@dataclass
class Transcribed:
    """Keeps what was said and what was heard, as strings. A row of 0 frames could not be heard whole and is left out."""

    letters: Alphabet  # ids → text
    beam: int  # width of the search; 0: none
    said: list[str] = field(default_factory=list)  # the true transcripts
    greedy: list[str] = field(default_factory=list)  # those of the likeliest path
    searched: list[str] = field(default_factory=list)  # those of the beam search
    edits: list[tuple[int, int]] = field(default_factory=list)  # of each recording; nothing where it was left out
    unknown: int = 0  # characters of true transcripts that the alphabet lacks
    left_out: int = 0  # recordings that did not fit
    has_nan: bool = False  # some logit was NaN

    def add(self, rows: Rows) -> None:
        for i, frames in enumerate(rows["frames"]):
            if frames == 0:
                self.left_out += 1
                self.edits.append((0, 0))
                continue
            self.said.append(self.letters.decode(rows["text"][i]))
            self.greedy.append(self.letters.decode(collapse(rows["path"][i][:frames])))
            self.edits.append(character_edits(self.said[-1], self.greedy[-1]))
            if self.beam:
                self.searched.append(heard(self.letters, rows, i, self.beam))
            self.unknown += int((rows["text"][i] == self.letters.classes).sum())
            self.has_nan |= bool(math.isnan(rows["likeliest"][i]))

    def score(self) -> dict[str, float]:
        # Where nothing was said there is nothing to divide by, whatever was heard.
        if self.has_nan or not any(text.split() for text in self.said):
            return {"value": math.nan, "word_error_rate": math.nan, "left_out": self.left_out}
        found = error_rates(self.said, self.greedy)
        scores = {"value": found["character_error_rate"], "word_error_rate": found["word_error_rate"]}
        if self.beam:
            scores |= {f"beam_{name}": value for name, value in error_rates(self.said, self.searched).items()}
        counts = {"unknown_characters": self.unknown, "left_out": self.left_out}
        return scores | {name: float(count) for name, count in counts.items() if count}


@dataclass(frozen=True, kw_only=True)
class Transcription(Streamed):
    """Character and word error rates of the likeliest path, and of a prefix beam search where `beam` is its width.

    `predict` gives what `frame_labels` makes of logits, and `text` [B,characters], the true ids. Recordings that do not
    fit whole have no frames: they are left out, and counted.
    """

    letters: Callable[[], Alphabet]  # opens the alphabet, which may read the data
    beam: int = 0  # width of the search that is scored too; 0: none
    metric: str = "character error rate"  # edits over true characters
    higher_is_better: bool = False  # direction

    def tally(self) -> Transcribed:
        return Transcribed(self.letters(), self.beam)

    def columns_of(self, tally: Transcribed) -> dict[str, np.ndarray] | None:
        if tally.has_nan or not tally.said:
            return None
        edits, characters = np.asarray(tally.edits, np.float64).T
        return {"edits": edits, "characters": characters}

    def value_of(self, sums: Mapping[str, np.ndarray]) -> float:
        return float(sums["edits"] / sums["characters"]) if sums["characters"] else math.nan


def frame_labels(logits: jax.Array, frames: jax.Array, *, whole: bool) -> dict[str, jax.Array]:
    """Logits [B,T,classes] and real frames [B] → `path` [B,T], `frames`, `likeliest` [B] (NaN where a logit of a real
    frame is), and, if `whole`, `log_probabilities`, which a beam search needs."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    real = jnp.arange(logits.shape[1], dtype=jnp.int32)[None] < frames[:, None]
    likeliest = jnp.where(real, log_probabilities.max(axis=-1), 0.0).sum(axis=1)
    made = {"path": jnp.argmax(log_probabilities, axis=-1).astype(jnp.int32), "frames": frames, "likeliest": likeliest}
    return {**made, "log_probabilities": log_probabilities} if whole else made


def heard(letters: Letters, rows: Rows, i: int, beam: int) -> str:
    """The transcript of row i: by beam search where `beam` is its width, else of the likeliest path."""
    frames = int(rows["frames"][i])
    if not beam:
        return letters.decode(collapse(rows["path"][i][:frames]))
    return letters.decode(prefix_beam(rows["log_probabilities"][i][:frames], beam, labels_per_frame=8)[0][0])
