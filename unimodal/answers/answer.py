"""One thing that a task can be asked, and what may be said along with the question."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from unimodal.data.blocks import Images, Sounds, Texts
from unimodal.data.encoders import encoder_for
from unimodal.data.pairs import pair_row, text_ids
from unimodal.data.text import text_of
from unimodal.errors import UsageError
from unimodal.generate import row_keys

IMAGE, TEXT, SOUND = "image", "text", "sound"
"""What an answer reads."""

Record = Mapping[str, Any]
Row = Mapping[str, Any]  # numpy arrays and numbers, by name


@dataclasses.dataclass(frozen=True)
class Asked:
    """Options that go along with a question. An answer that has no use for a field ignores it."""

    classes: tuple[str, ...] = ()  # names to choose among, for a model that compares pictures with words
    template: str = "{}"  # the sentence that such a name is put into, as "a photo of a {}."
    top: int = 5  # the likeliest classes or words that are told
    steps: int = 64  # ids that a continuation has at most
    temperature: float = 0.0  # of sampling; 0: always the likeliest (of pictures: what the task has for them)
    top_p: float = 1.0  # sample among the likeliest that have this probability together
    seed: int = 0  # of sampling, and of what is hidden from a model that is to guess it
    beam: int = 0  # width of a transcript's beam search; 0: the likeliest path

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise UsageError(f"classes must be several names, but is {self.classes!r}")
        object.__setattr__(self, "classes", tuple(self.classes))  # a list, too, can be asked and asked again
        if self.top < 1 or self.steps < 1:
            raise UsageError(f"top and steps must be at least 1, but are {self.top} and {self.steps}")
        if not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1):
            raise UsageError(
                f"temperature must be at least 0 and top_p above 0 and at most 1, but are {self.temperature:g} and "
                f"{self.top_p:g}"
            )
        if "{}" not in self.template:
            raise UsageError(f"the template {self.template!r} has no {{}}, where a class is put in")

    def keys(self, ids_BT: jax.Array, lengths_B: jax.Array | None = None) -> jax.Array:
        """A key for each row, see `row_keys`."""
        return row_keys(self.seed, ids_BT, lengths_B)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One question, and how a model answers it.

    `row` and `say` run on the host, `predict` on the device, once for each batch, always in the same shapes. `once` is what
    does not depend on the batch (the embeddings of class names): it runs once, and `predict` finds its arrays in the batch.
    """

    gives: str  # "class", "value", "transcript", "continuation", "caption", "masked words", "picture", "embedding"
    reads: str  # IMAGE, TEXT or SOUND, or two of them in one question, as "image+text"
    row: Callable[[Record], Row]  # a record → the arrays of one row; raises UsageError for what it cannot read
    predict: Callable[[Any, Mapping[str, jax.Array]], Mapping[str, jax.Array]]  # model, batch → one row per input
    say: Callable[[Row], dict[str, Any]]  # a row of what was predicted → values that JSON knows
    once: Callable[[Any], Mapping[str, jax.Array]] | None = None  # model → arrays that every batch is given
    rows: Callable[[Record], list[Row]] | None = None  # in place of `row`, for a record that takes several rows
    join: Callable[[Sequence[Row]], Row] | None = None  # what was predicted for these, as one row for `say`


def read_any(block: Any, record: Record) -> Any:
    """The block, without the column that it reads in training where the record has none of that name."""
    columns = block.column.split("+") if block.column else []
    return block if all(name in record for name in columns) else dataclasses.replace(block, column="")


def picture_row(images: Images, config: Any, name: str = "image") -> Callable[[Record], Row]:
    """A picture as the tokenizer of `config` takes it, under `name`."""
    whole = images.part(config.image_size, config.channels, name)

    def row(record: Record) -> Row:
        part = read_any(images, record).part(config.image_size, config.channels, name)
        return whole.make(part.read(record), np.random.default_rng(0), False)

    return row


def text_row(texts: Texts, vocabulary: int, name: str = "ids") -> Callable[[Record], Row]:
    """A text as one row of ids under `name`. Raises UsageError for a text without any."""

    def row(record: Record) -> Row:
        return {name: texts.row(encoder_for(texts.encoder, vocabulary), spoken(texts, record))}

    return row


def pair_text_row(texts: Texts, vocabulary: int, second: str = "") -> Callable[[Record], Row]:
    """A text, or two, between the vocabulary's specials: `ids`, and `types` of two. second: the column of the other text; of
    one text it is what stands behind a tab."""

    def row(record: Record) -> Row:
        encoder, first, other = encoder_for(texts.encoder, vocabulary), spoken(texts, record), None
        if second:
            columns = second.split("+")
            if all(name in record for name in columns):
                other = text_of(dict(record), columns)
            else:
                first, tab, other = first.partition("\t")
                if not tab:
                    raise UsageError(f"it compares two texts: give {second!r} too, or both with a tab between them")
        encoded = None if other is None else text_ids(encoder, other)
        ids, types = pair_row(encoder, texts.length, text_ids(encoder, first), encoded)
        return {"ids": ids, "types": types} if second else {"ids": ids}

    return row


def spoken(texts: Texts, record: Record) -> str:
    """The record's text. Raises UsageError for one that says nothing."""
    text = read_any(texts, record).text(record)
    if not text.strip():
        raise UsageError("the text is empty")
    return text


def both_rows(first: Callable[[Record], Row], second: Callable[[Record], Row]) -> Callable[[Record], Row]:
    """The arrays of two modalities of one record, for an answer that reads "image+text"."""
    return lambda record: {**first(record), **second(record)}


def sound_row(sounds: Sounds) -> Callable[[Record], Row]:
    """The beginning of a recording and how many of its samples are real. Raises UsageError for one without samples."""
    part = sounds.part(random=False)

    def row(record: Record) -> Row:
        audio = read_any(sounds, record).read(record)
        if not len(audio):
            raise UsageError("the recording is empty")
        return part.make(audio, np.random.default_rng(0), False)

    return row


def sound_windows(sounds: Sounds, shift: int) -> Callable[[Record], list[Row]]:
    """All of a recording, in windows that begin every `shift` samples, each as `sound_row` has it. Raises UsageError for one
    without samples."""
    part = sounds.part(random=False)

    def rows(record: Record) -> list[Row]:
        audio = read_any(sounds, record).read(record)
        if not len(audio):
            raise UsageError("the recording is empty")
        count = 1 + max(0, -(-(len(audio) - sounds.samples) // shift))
        return [part.make(audio[i * shift :], np.random.default_rng(0), False) for i in range(count)]

    return rows
