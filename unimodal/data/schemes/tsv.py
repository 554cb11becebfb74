"""`tsv:FILE`: as csv, with tabs between cells and no quotes, so a quotation mark is a quotation mark."""

from __future__ import annotations

from functools import partial

from unimodal.data.address import Address
from unimodal.data.dataset import Source
from unimodal.data.schemes.csv import OPTIONS as OPTIONS
from unimodal.data.schemes.csv import open_file
from unimodal.data.tables import open_tables, splits_of

FORM = "tsv:FILE|GLOB|DIR"
SUFFIXES = (".tsv",)


def splits(address: Address) -> tuple[str, ...]:
    """List splits by the names of the files in a folder; () for one file."""
    return splits_of(address, SUFFIXES)


def open_split(address: Address, split: str | None) -> Source:
    """One record a line. Cells are texts."""
    return open_tables(address, split, SUFFIXES, partial(open_file, address=address, separator="\t", quoted=False))
