"""`array_record:DIR`: files of msgpack maps, as `write_array_record` and `unimodal data convert` write them."""

from __future__ import annotations

from pathlib import Path

from unimodal.data.address import Address
from unimodal.data.dataset import Source
from unimodal.data.records import open_array_record, splits_in

FORM = "array_record:DIR"
OPTIONS: dict[str, str] = {}


def splits(address: Address) -> tuple[str, ...]:
    """List splits by the names of the files."""
    return tuple(sorted(splits_in(Path(address.path).expanduser()))) or ("train",)


def open_split(address: Address, split: str | None) -> Source:
    """DIR/SPLIT.array_record, or its shards."""
    return open_array_record(Path(address.path).expanduser(), split or "train")
