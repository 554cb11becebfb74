"""The special ids that go around one text, and around and between two."""

from __future__ import annotations

import dataclasses

NO_ID = -1
"""Stands for a special that a vocabulary does not have, and fills up rows of ids from such a vocabulary."""


@dataclasses.dataclass(frozen=True)
class Around:
    """Ids that go around one text, or around and between two. Before and first text are of sentence type 0."""

    before: tuple[int, ...]  # the first text
    between: tuple[int, ...]  # two texts
    after: tuple[int, ...]  # the last text
    between_types: tuple[int, ...]  # sentence types of `between`
    second_type: int  # sentence type of the second text and of what comes after it

    def count(self, *, two: bool) -> int:
        """Count the specials around one text, or around two."""
        return len(self.before) + len(self.after) + (len(self.between) if two else 0)

    def filled(self, value: int) -> Around:
        """The same arrangement, with a value in the place of every id."""
        parts = {name: (value,) * len(getattr(self, name)) for name in ("before", "between", "after")}
        return dataclasses.replace(self, **parts)


def bert_around(cls: int, sep: int) -> Around:
    """BERT's arrangement (Devlin 2019, figure 2): [CLS] first [SEP] second [SEP]. `NO_ID` is left out."""
    start, end = ((i,) if i != NO_ID else () for i in (cls, sep))
    return Around(start, end, end, (0,) * len(end), 1)
