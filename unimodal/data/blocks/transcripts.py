"""Transcripts of recordings, as a task's config describes them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from unimodal.data.blocks.inputs import find_column
from unimodal.data.marked import marks
from unimodal.data.sources import open_source
from unimodal.data.spec import ArraySpec
from unimodal.data.transcripts import Alphabet, collect_alphabet, spell
from unimodal.data.values import column as read_column
from unimodal.data.values import readable
from unimodal.errors import UsageError

OBVIOUS = ("text", "transcript", "transcription", "sentence", "normalized_text")


@dataclasses.dataclass(frozen=True)
class Transcripts:
    """One transcript per recording, in a plain spelling (`unimodal.data.spell`)."""

    column: str = ""  # "": the first of text, transcript, transcription, sentence, normalized_text
    characters: int = 240  # at most, of one transcript
    alphabet: str = ""  # the characters told apart; "": all of the training transcripts
    drop: str = "+"  # signs that vanish, such as stress marks inside words
    keep: str = ""  # further signs that stay

    def spell(self, text: str) -> str:
        """A transcript in the spelling that is learned."""
        return spell(text, drop=self.drop, keep=self.keep)

    def letters(self, source: str, segments: str = "") -> Alphabet:
        """The alphabet. Reads the training transcripts unless the config gives it."""
        if self.alphabet:
            return Alphabet(self.alphabet)
        return collect_alphabet(self.all(source, "train", segments))

    def learned(self, source: str, segments: str = "") -> dict[str, Any]:
        """The fields that the data filled in, with which a model can be used where the data is not."""
        return {"alphabet": self.letters(source, segments).characters}

    def all(self, source: str, split: str, segments: str = "") -> tuple[str, ...]:
        """Every transcript of a split, spelt; those of marked stretches where `segments` names them."""
        return tuple(self.spell(text) for text in _transcripts(source, split, self.column, segments))

    def of(self, record: Mapping[str, Any]) -> str:
        """A record's transcript, spelt."""
        return self.spell(_transcript(record, self.column))

    def ids(self, letters: Alphabet, text: str) -> tuple[np.ndarray, bool]:
        """int32 `[characters]`, padded with 0, and whether the whole transcript is in it."""
        ids = letters.encode(text)
        out = np.zeros(self.characters, np.int32)
        out[: len(ids)] = ids[: self.characters]
        return out, len(ids) <= self.characters

    def spec(self, classes: int) -> ArraySpec:
        """Describe a row of ids below `classes`."""
        return ArraySpec((self.characters,), np.int32, 0, classes)


def _transcript(record: Mapping[str, Any], column: str) -> str:
    found = find_column(record, column, OBVIOUS, "a transcript")
    if not isinstance(text := record[found], str):
        raise UsageError(f"record {record['id']!r}: column {found!r} holds no transcript, but {type(text).__name__}")
    return text


@functools.cache
def _transcripts(uri: str, split: str, column: str, segments: str) -> tuple[str, ...]:
    source = open_source(uri, split)
    if segments:
        return tuple(text for found in marks(source, segments) for _, _, text in found)
    field = find_column(readable(source), column, OBVIOUS, "a transcript")
    texts = zip(read_column(source, "id"), read_column(source, field), strict=True)
    return tuple(_transcript({"id": name, field: text}, field) for name, text in texts if text is not None)
