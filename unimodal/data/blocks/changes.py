"""Pictures and the same pictures changed as words say, as a task's config describes them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from unimodal.data.augment.changes import CHANGES, changed
from unimodal.data.blocks.images import Images
from unimodal.data.blocks.inputs import Part
from unimodal.data.blocks.texts import Texts
from unimodal.data.encoders import encoder_for
from unimodal.data.spec import ArraySpec
from unimodal.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Changes(Images):
    """One picture per record, and one or several that words make of it.

    Records may hold such triplets: then `changed` names the column of the other picture, and the task's texts say what is
    different. Without it the changes are made here (`data.augment.changes`), with words of their own.
    """

    changed: str = ""  # the column of the changed picture; "": make changes
    count: int = 4  # changes of each picture that are made; they are one another's rivals, so the words must be read
    kinds: tuple[str, ...] = ()  # the changes to choose among, by name; (): all
    unseen: bool = True  # whether evaluation asks in words that training never uses

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.kinds:
            if kind not in CHANGES:
                raise UsageError(f"pictures.kinds has {kind!r}, which is no change: there is {', '.join(CHANGES)}")
        if not 1 <= self.count <= len(self.chosen):
            raise UsageError(
                f"pictures.count must be from 1 to the number of kinds, {len(self.chosen)}, but is {self.count}"
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names of the changes that are made."""
        return self.kinds or tuple(CHANGES)

    @property
    def many(self) -> int:
        """How many changed pictures come with each record."""
        return 1 if self.changed else self.count

    def triplets(self, texts: Texts, size: tuple[int, int], channels: int, vocabulary: int) -> Part:
        """A picture, what it becomes, and the words between.

        `image` float32 `[*size, C]`; `changed` float32 `[count, *size, C]`; `ids` int32 `[count, length]`; `looks` int32
        `[count]`, equal for changed pictures that are equal, and `before` int32, the same of the picture as it was.
        """
        whole, other = self.part(size, channels, "image"), self._target().part(size, channels, "image")
        words = texts.spec(vocabulary)
        spec = {
            "image": whole.spec["image"],
            "changed": dataclasses.replace(whole.spec["image"], shape=(self.many, *size, channels)),
            "ids": dataclasses.replace(words, shape=(self.many, *words.shape)),
            "looks": ArraySpec((self.many,), np.int32),
            "before": ArraySpec((), np.int32),
        }

        def read(record: Mapping[str, Any]) -> Any:
            first = whole.read(record)
            return (first, other.read(record), texts.read(record)[0]) if self.changed else (first, None, "")

        def make(value: Any, rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
            first, second, text = value
            if self.changed:  # both as they are: a crop of one would not be a crop of the other
                pixels, results, asked = self.fitted(first, size), self.fitted(second, size)[None], [text]
            else:
                pixels = self.to_uint8(whole.make(first, rng, training)["image"])
                new = self.unseen and not training
                results, asked = changed(pixels, self.count, rng, kinds=self.chosen, unseen=new)
            encoder = encoder_for(texts.encoder, vocabulary)
            return {
                "image": self.to_float(pixels),
                "changed": np.stack([self.to_float(result) for result in results]),
                "ids": np.stack([texts.row(encoder, phrase) for phrase in asked]),
                "looks": np.asarray([_look(result) for result in results], np.int32),
                "before": np.asarray(_look(np.asarray(pixels)), np.int32),
            }

        return Part(spec, read, make)

    def _target(self) -> Images:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(Images)}
        return Images(**{**fields, "column": self.changed})


def _look(pixels: np.ndarray) -> int:
    return zlib.crc32(pixels.tobytes()) & 0x7FFFFFFF
