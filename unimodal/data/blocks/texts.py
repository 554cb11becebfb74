"""Texts, as a task's config describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from unimodal.data.around import NO_ID
from unimodal.data.blocks.inputs import Part, brought, find_column
from unimodal.data.dataset import Source
from unimodal.data.encoders import Encoder, encoder_for, ids_spec, open_encoder, pad_id
from unimodal.data.pairs import pair_row
from unimodal.data.shares import Weight, parts_of
from unimodal.data.skipped import LEDGER, Where
from unimodal.data.sources import open_source
from unimodal.data.spec import ArraySpec
from unimodal.data.text import fit_length, text_of
from unimodal.data.values import id_at
from unimodal.data.vocabulary import SPELLINGS
from unimodal.errors import RecordError, UsageError

OBVIOUS = ("text", "caption", "captions", "sentence", "transcript", "name", "title")


@dataclasses.dataclass(frozen=True)
class Texts:
    """One text per record, encoded as ids."""

    column: str = ""  # "": the first of text, caption, captions, sentence, transcript, name, title; "a+b": both, joined
    phrases: str = ""  # a column with a list of phrases; training says some of them instead of the text, or after it
    encoder: str = brought("bytes")  # or the path of a vocabulary
    length: int = 128  # ids in a row

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UsageError(f"texts.length must be at least 1, but is {self.length}")

    @property
    def opened(self) -> Encoder:
        """The encoder itself."""
        return open_encoder(self.encoder)

    @property
    def pad(self) -> int:
        """The id that fills up rows, known without opening the encoder."""
        return pad_id(self.encoder)

    def spec(self, vocabulary: int) -> ArraySpec:
        """One row of ids, below `vocabulary` (the rows of the tokenizer's table)."""
        return ids_spec(self.encoder, self.length, vocabulary)

    def part(self, vocabulary: int, name: str = "ids") -> Part:
        """A row of ids under `name`: the text between the vocabulary's own specials, cut or padded to `length`."""

        def make(value: tuple[str, list[str]], rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
            encoder = encoder_for(self.encoder, vocabulary)
            text = said(*value, rng) if training else value[0]
            return {name: self.row(encoder, text)}

        return Part({name: self.spec(vocabulary)}, self.read, make)

    def row(self, encoder: Encoder, text: str) -> np.ndarray:
        """The ids of one text with its specials, where the vocabulary has them: int32 `[length]`.

        Bytes have no specials of their own here: a caption of bytes is its bytes.
        """
        if self.encoder == "bytes":
            out = np.full(self.length, encoder.PAD, np.int32)
            ids = encoder.encode(text)[: self.length]
            out[: len(ids)] = ids
            return out
        return pair_row(encoder, self.length, encoder.encode(text))[0]

    def read(self, record: Mapping[str, Any]) -> tuple[str, list[str]]:
        """The record's text, and its phrases (none where the record has no such column)."""
        phrases = record.get(self.phrases) if self.phrases else None
        return self.text(record), list(phrases or ())

    def text(self, record: Mapping[str, Any]) -> str:
        """The text of a record. Raises UsageError for a column that it lacks, or that is no text."""
        return text_of(dict(record), self.fields(record))

    def fields(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns that make up the text."""
        return tuple(find_column(record, name, OBVIOUS, "a text") for name in self.column.split("+"))

    def documents(self, source: Source, where: Where | None = None) -> Source:
        """The source with `text` made of the columns. where: what it is called; a record that cannot be used is then left
        out and listed (`data.skipped`), which leaves an empty text."""
        return _Documents(source, self, where)

    def open(self, source: str, split: str) -> Source:
        """The documents of a split."""
        return self.documents(open_source(source, split), Where(source, split))


@dataclasses.dataclass(frozen=True)
class Captions(Texts):
    """A text that a model learns to write: a row says where it ends.

    The end of bytes is the padding after them. Padding of a vocabulary is no id, so a row of it holds `end` itself.
    """

    @property
    def end(self) -> int:
        """The id that ends a caption. Raises UsageError for a vocabulary that has none."""
        return self._end(self.opened)

    def _end(self, encoder: Encoder) -> int:
        if self.encoder == "bytes":
            return encoder.PAD
        around = encoder.around
        # One that also begins a row would stop what is written before its first word.
        known = (i for i in (*around.after[-1:], encoder.EOS, encoder.SEP) if i not in (NO_ID, *around.before))
        if (end := next(known, None)) is None:
            spelt = ", ".join((*SPELLINGS["EOS"], *SPELLINGS["SEP"][:1]))
            raise UsageError(f"encoder {self.encoder!r} has no token that ends a caption and begins none, as {spelt}")
        return end

    def row(self, encoder: Encoder, text: str) -> np.ndarray:
        end = self._end(encoder)
        if self.encoder == "bytes" or encoder.around.after[-1:] == (end,):
            return super().row(encoder, text)
        shorter = pair_row(encoder, self.length - 1, encoder.encode(text))[0]
        row = fit_length(shorter, self.length, pad_id=encoder.PAD)
        row[(shorter != encoder.PAD).sum()] = end
        return row


@dataclasses.dataclass(frozen=True)
class _Documents:
    source: Source
    texts: Texts
    where: Where | None

    @property
    def parts(self) -> tuple[tuple[int, float | Weight], ...]:
        """The weights of joined sources."""
        return parts_of(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = self.source[index]
            made = {**record, "text": self.texts.text(record)}
        except RecordError as error:
            if self.where is None:
                raise
            name = id_at(self.source, index)
            LEDGER.note(self.where, name, error, len(self))
            return {"id": name, "text": ""}
        if self.where is not None:
            LEDGER.looked(self.where)
        return made


def said(text: str, phrases: list[str], rng: np.random.Generator) -> str:
    """The text alone half of the time, else followed by two of the phrases, or four phrases instead of it."""
    words = list(phrases)
    if not words or rng.random() < 0.5:
        return text
    rng.shuffle(words)
    return " ".join([text, *words[:2]]) if rng.random() < 0.5 else " ".join(words[:4])
