"""A data source as it is written in a config: `SCHEME:PATH?option=value&option=value`, several joined by `;`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from unimodal.errors import UsageError

SPLITS = ("train", "validation", "test")
OPTIONS = {
    "validation": "a share such as 0.1 that is held out, or the source's own name of the split",
    "test": "the same for a split `test`",
    "train": "the source's own name of the split `train`",
    "by": "a column: records of one value stay in one split (a speaker, a patient)",
    "stratify": "a column: every split gets the same share of each of its values (a class)",
    "weight": "the share of examples in training that comes from here, among several sources: a number, size, 2*size, "
    "size^0.5, or STEP:VALUE,STEP:VALUE",
    "only": "COLUMN:VALUE,VALUE: the records that have these values, such as a few of the classes (label:0,1)",
    "bad": "the share of records that may be damaged before the run stops (0.05)",
}
"""Options of every scheme."""

_OPTIONS = re.compile(r"\?((?:\w+=[^&?]*)(?:&\w+=[^&?]*)*)$")


@dataclasses.dataclass(frozen=True)
class Address:
    """One source."""

    scheme: str  # before the colon
    path: str  # between the scheme and the options
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)  # behind the question mark

    def __str__(self) -> str:
        return f"{self.scheme}:{self.path}"

    @property
    def shares(self) -> dict[str, float]:
        """The splits that are a share of all records. Raises UsageError for shares that leave nothing to train on."""
        found = {name: share for name in SPLITS[1:] if (share := _number(self.options.get(name))) is not None}
        if any(not 0 < share < 1 for share in found.values()) or sum(found.values()) >= 1:
            raise UsageError(f"{self}: shares of validation and test must be above 0 and together below 1")
        return found

    @property
    def names(self) -> dict[str, str]:
        """Our name of a split → the source's own, where the options say so."""
        return {n: self.options[n] for n in SPLITS if n in self.options and _number(self.options[n]) is None}

    def number(self, option: str, default: float, *, least: float = 0.0) -> float:
        """An option that is a number. Raises UsageError for another text, or less than `least`."""
        if option not in self.options:
            return default
        value = _number(self.options[option])
        if value is None or value < least:
            raise UsageError(f"{self}: {option}={self.options[option]} should be a number of at least {least:g}")
        return value


def parse(uri: str) -> tuple[Address, ...]:
    """The addresses in a URI. Whether their schemes and options exist is for others to say.

    Raises UsageError for a part without a scheme, or with nothing after the colon.
    """
    return tuple(_one(part.strip(), uri) for part in (uri.split(";") if ";" in uri else [uri]))


def _one(text: str, uri: str) -> Address:
    scheme, colon, rest = text.partition(":")
    if not colon:
        ending = text.partition("?")[0].rpartition(".")[2]
        scheme = {"jsonl": "jsonl", "csv": "csv", "tsv": "tsv", "parquet": "parquet", "tar": "wds"}.get(ending)
        example = "folder:photos" if scheme is None else f"{scheme}:{text}"
        raise UsageError(f"unknown data source {uri!r}: expected SCHEME:PATH, such as {example}")
    options: dict[str, str] = {}
    if match := _OPTIONS.search(rest):
        rest = rest[: match.start()]
        for pair in match[1].split("&"):
            name, _, value = pair.partition("=")
            if name in options:
                raise UsageError(f"{text!r} says {name} twice")
            options[name] = value
    if not rest:
        raise UsageError(f"data source {uri!r} names nothing after the colon")
    return Address(scheme, rest, options)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
