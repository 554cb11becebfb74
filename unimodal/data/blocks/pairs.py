"""Short texts by the record: one text or two with a class, and two that belong together."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np

from unimodal.data.blocks.inputs import Inputs
from unimodal.data.blocks.labels import Labels
from unimodal.data.blocks.texts import Texts
from unimodal.data.dataset import Dataset
from unimodal.data.encoders import Encoder, encoder_for
from unimodal.data.pairs import Rows, pair_row, some_phrases, some_records, text_ids, text_pairs, text_rows
from unimodal.data.skipped import Where
from unimodal.data.sources import open_source
from unimodal.data.spec import ArraySpec
from unimodal.data.values import readable
from unimodal.errors import UsageError


def labelled_texts(
    source: str, texts: Texts, labels: Labels, vocabulary: int, *, second: str = "", limit: int = 0
) -> Inputs:
    """Rows `ids` of one text, or of two where `second` names the other's column (then with sentence `types`), and
    `label`. limit: train on so many records; 0: all."""
    classes = labels.size(source)
    spec = {"ids": texts.spec(vocabulary), "label": ArraySpec((), np.int32, 0, classes)}
    if second:
        spec["types"] = ArraySpec((texts.length,), np.int32, 0, 2)

    def rows(split: str) -> Rows:
        opened, training, where = open_source(source, split), split == "train", Where(source, split)
        if training:
            labels.check(source)
            opened = some_records(opened, limit, where) if limit else opened
        columns = texts.fields(readable(opened)), tuple(second.split("+")) if second else ()
        told: Any = dict(keep={"label": partial(labels.number, source)}, what=str(where), where=where)
        found = text_rows(opened, encoder_for(texts.encoder, vocabulary), texts.length, *columns, **told)
        if training and classes > len(found):
            raise UsageError(f"{classes} classes, but {source} has only {len(found)} examples to train on")
        return found

    def example(row: Any, _rng: np.random.Generator) -> dict[str, Any]:
        return {**{name: row[name] for name in spec if name != "label"}, "label": np.int32(row["label"])}

    return Inputs(spec, lambda split: Dataset(rows(split), example))


@dataclasses.dataclass(frozen=True)
class TextPairs:
    """Two texts of each record that belong together. Either may be a list of phrases."""

    source: str  # a data source
    texts: Texts  # the first text, and how both are encoded
    second: str  # the column of the other; "a+b" joins several
    distinct: bool = False  # leave out phrases of the second that share a word with the first
    keep: float = 1.0  # in training, phrases are shuffled, and each is kept with this probability

    SIDES = ("first", "second")

    def rows(self, split: str) -> Rows:
        """The records of a split as lists of phrases, `first` and `second`."""
        fields, where = (self.texts.column.split("+"), self.second.split("+")), Where(self.source, split)
        opened = open_source(self.source, split)
        return text_pairs(opened, *fields, distinct=self.distinct, what=str(where), where=where)

    def inputs(self, vocabulary: int) -> Inputs:
        """Rows of ids, `first` and `second`."""

        def dataset(split: str) -> Dataset:
            encoder = encoder_for(self.texts.encoder, vocabulary)

            def example(row: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
                return {s: self._ids(encoder, row[s], rng if split == "train" else None) for s in self.SIDES}

            return Dataset(self.rows(split), example)

        return Inputs({side: self.texts.spec(vocabulary) for side in self.SIDES}, dataset)

    def _ids(self, encoder: Encoder, phrases: list[str], rng: np.random.Generator | None) -> np.ndarray:
        kept = phrases if rng is None else some_phrases(phrases, rng, self.keep)
        return pair_row(encoder, self.texts.length, text_ids(encoder, ", ".join(kept)))[0]
