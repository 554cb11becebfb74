"""Schemes of data sources: `NAME:…` is read by the module NAME here, and by nothing else.

A module has `FORM`, how its sources are written, `splits(address)`, the splits that a source has of its own, () where it is to
be divided, and `open_split(address, split)`, the records of one of those splits, or all where `split` is None. `OPTIONS` names
what it takes besides the options of every scheme. A new module is a new scheme.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol, cast

from unimodal.data.address import Address
from unimodal.data.dataset import Source

ALIASES = {"arrayrecord": "array_record", "webdataset": "wds"}


class Scheme(Protocol):
    """The protocol of the modules in this folder. Both functions raise UsageError for what is not there."""

    FORM: str
    OPTIONS: Mapping[str, str]

    def splits(self, address: Address) -> tuple[str, ...]: ...

    def open_split(self, address: Address, split: str | None) -> Source: ...


@functools.cache
def names() -> tuple[str, ...]:
    """The schemes that there are."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find(name: str) -> Scheme | None:
    """The module that reads a scheme, None for a scheme that there is not."""
    name = ALIASES.get(name, name)
    found: Any = importlib.import_module(f"{__name__}.{name}") if name in names() else None
    return cast("Scheme | None", found)
