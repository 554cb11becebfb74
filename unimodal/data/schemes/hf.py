"""`hf:NAME` or `hf:DIR`: a data set of Hugging Face's library `datasets`, from its hub, its cache or a folder."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

from unimodal.data import cells
from unimodal.data.address import Address
from unimodal.data.dataset import Source
from unimodal.data.dividing import hashed
from unimodal.errors import UsageError

FORM = "hf:NAME[:CONFIG]|DIR"
OPTIONS = {"revision": "of a set on the hub"}


def splits(address: Address) -> tuple[str, ...]:
    """List the splits of the set; () where it has `train` alone."""
    found = tuple(sorted(_load(address.path, address.options.get("revision"))))
    return () if len(found) == 1 and "validation" not in address.names else found


def open_split(address: Address, split: str | None) -> Source:
    """The records. `split` may be one of datasets' own slices, such as train[:80%], for sets of the hub."""
    found = _load(address.path, address.options.get("revision"))
    if split is None:
        split = next(iter(found))
    if split not in found:
        raise UsageError(f"no split {split!r} in {address}: it has {', '.join(sorted(found))}")
    return HfRecords(str(address), split, found[split])


@dataclasses.dataclass(frozen=True)
class HfRecords:
    """Rows of a set. `id` is the column of that name, else "SPLIT/ROW"; pictures and sounds are bytes."""

    where: str  # the source, for messages
    split: str  # its name
    table: Any = dataclasses.field(repr=False, compare=False)  # of the datasets library

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        row = self.table[index]
        name = str(row["id"]) if row.get("id") is not None else f"{self.split}/{index}"
        return {**cells.opened(row, "/", name), "id": name}  # paths are the library's own

    def column(self, name: str) -> list[Any]:
        """The values under `name`."""
        if name in self.table.column_names:
            return list(self.table[name])
        if name == "id":
            return [f"{self.split}/{i}" for i in range(len(self))]
        there = ", ".join(sorted(self.table.column_names))
        raise UsageError(f"{self.where} has no column {name!r}: there is {there}")

    def class_names(self, column: str) -> tuple[str, ...]:
        """The names of a ClassLabel, else ()."""
        return tuple(getattr(self.table.features.get(column), "names", None) or ())

    def keys(self) -> Any:
        """A hash of each record's id."""
        return hashed(self.column("id"))


@functools.cache
def _load(path: str, revision: str | None) -> dict[str, Any]:
    """Split → table, with pictures and sounds left encoded."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError("hf: needs the package datasets: pip install datasets") from error
    folder = os.path.expanduser(path)
    name, _, config = (path, "", "") if os.path.isdir(folder) else path.partition(":")
    try:
        if os.path.isfile(f"{folder}/dataset_dict.json") or os.path.isfile(f"{folder}/state.json"):
            found: Any = datasets.load_from_disk(folder)
        else:
            name = folder if os.path.isdir(folder) else name
            found = datasets.load_dataset(name, config or None, revision=revision)
    except Exception as error:  # the library raises many kinds
        raise UsageError(f"hf:{path} cannot be loaded ({' '.join(str(error).split())[:160]})") from error
    found = dict(found) if isinstance(found, dict) else {"train": found}
    for split, table in found.items():
        for column, feature in table.features.items():
            if isinstance(feature, datasets.Image | datasets.Audio):
                table = table.cast_column(column, type(feature)(decode=False))
        found[split] = table
    return found
