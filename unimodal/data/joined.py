"""Several sources as one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from unimodal.data.dataset import Source
from unimodal.data.shares import Weight
from unimodal.data.values import class_names, column, id_at
from unimodal.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Joined:
    """The records of all sources, one source after the other; ids begin with their source's name.

    Numbers of classes are those of `classes`, the names of all sources together.
    """

    names: tuple[str, ...]  # of the sources
    sources: tuple[Source, ...]  # in order
    weights: tuple[float | Weight, ...]  # shares of the examples in training; (): every record counts the same

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        which = int(np.searchsorted(self._ends, index, side="right"))
        record = self.sources[which][index - int(self._ends[which] - len(self.sources[which]))]
        return {**self._with_classes(which, record), "id": f"{self.names[which]}/{record['id']}"}

    @property
    def parts(self) -> tuple[tuple[int, float | Weight], ...]:
        """Records and weight of each source, () where nothing is weighed."""
        return tuple((len(s), w) for s, w in zip(self.sources, self.weights, strict=True)) if self.weights else ()

    def id_at(self, index: int) -> str:
        """The record's id, behind its source's name."""
        which = int(np.searchsorted(self._ends, index, side="right"))
        inner = index - int(self._ends[which] - len(self.sources[which]))
        return f"{self.names[which]}/{id_at(self.sources[which], inner)}"

    def column(self, name: str) -> list[Any]:
        """The values under `name`. Raises UsageError where a source has none."""
        found: list[Any] = []
        for which, source in enumerate(self.sources):
            values, numbers = column(source, name), self._numbers(which, name)
            if name == "id":
                values = [f"{self.names[which]}/{value}" for value in values]
            found += [self._translated(numbers, value) for value in values] if numbers else values
        return found

    def class_names(self, field: str) -> tuple[str, ...]:
        """The names of all sources' classes, sorted, () where no source says. Raises UsageError where only some do."""
        found = [class_names(source, field) for source in self.sources]
        if len(set(found)) == 1:
            return found[0]
        if not all(found):
            bare = self.names[found.index(())]
            raise UsageError(f"{bare} does not name its classes, as other sources do: numbers could not be compared")
        return tuple(sorted(set(itertools.chain(*found))))

    def _numbers(self, which: int, field: str) -> list[int]:
        """A source's number of a class → the number here; empty where they are the same."""
        own, all_names = class_names(self.sources[which], field), self.class_names(field)
        places = {name: place for place, name in enumerate(all_names)}
        return [] if own == all_names else [places[name] for name in own]

    def _with_classes(self, which: int, record: dict[str, Any]) -> dict[str, Any]:
        """A record of a source, its numbers of classes as they are here, whatever their columns are called."""
        changed = {}
        for field, value in record.items():
            if isinstance(value, int | np.integer):
                if (which, field) not in self._known:
                    try:
                        self._known[which, field] = self._numbers(which, field)
                    except UsageError:  # whoever reads classes asks for their names and is refused; others need none
                        self._known[which, field] = []
                if numbers := self._known[which, field]:
                    changed[field] = self._translated(numbers, value)
        return {**record, **changed}

    @functools.cached_property
    def _known(self) -> dict[tuple[int, str], list[int]]:
        # Every record asks, and with a thousand classes the answer takes longer than the record.
        return {}

    @staticmethod
    def _translated(numbers: list[int], value: Any) -> Any:
        """A number of a class by `_numbers`. Others stay as they are, such as -1, which means no class."""
        if not isinstance(value, int | np.integer) or value < 0:
            return value
        if value >= len(numbers):
            raise UsageError(f"label {value} is not among the {len(numbers)} classes that its source names")
        return numbers[int(value)]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(source) for source in self.sources])


def joined(names: Sequence[str], sources: Sequence[Source], weights: Sequence[float | Weight | None]) -> Joined:
    """Join sources. Raises UsageError where some have a weight and some have none."""
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(names):
        bare = names[list(weights).index(None)]
        raise UsageError(f"{bare} has no ?weight=, but other sources have one: weigh all, or none")
    return Joined(tuple(names), tuple(sources), tuple(given))
