"""`open_source(uri, split)`: records from wherever they are, all behind the same two methods.

A URI is `SCHEME:PATH`, with options as `?name=value&name=value` (`address.OPTIONS` and the scheme's own), and several joined by
`;`. `schemes/` has one module for each scheme.
"""

from __future__ import annotations

import difflib

from unimodal.data import schemes
from unimodal.data.address import OPTIONS, Address, parse
from unimodal.data.dataset import Source
from unimodal.data.dividing import SHARE, divided, keys_of
from unimodal.data.joined import joined
from unimodal.data.only import only
from unimodal.data.records import write_array_record
from unimodal.data.schemes.embedded import EMOJI_GROUPS
from unimodal.data.shares import parse_weight
from unimodal.data.values import class_names, column, first
from unimodal.errors import UsageError

__all__ = ["EMOJI_GROUPS", "class_names", "column", "first", "open_source", "write_array_record"]


def open_source(uri: str, split: str) -> Source:
    """The records of one split, by index. Every record is a dict with a stable string under "id".

    Reading is lazy: opening costs a directory listing, a file header, or, once for each text file or tar, an index of where
    its records begin. A source without splits of its own is divided by a hash of each record's key (`dividing`).

    Raises UsageError, in one line, for an unknown scheme, option, name or split, for missing or empty data, and for a
    missing optional package.
    """
    addresses = parse(uri)
    opened = [_open(address, split, uri) for address in addresses]
    if len(addresses) == 1:
        return opened[0]
    weights = [
        parse_weight(a.options["weight"], len(source), str(a)) if "weight" in a.options else None
        for a, source in zip(addresses, opened, strict=True)
    ]
    names = [str(address) for address in addresses]
    if len(set(names)) < len(names):
        raise UsageError(f"{uri!r} joins {next(n for n in names if names.count(n) > 1)} with itself")
    return joined(names, opened, weights)


def _open(address: Address, split: str, uri: str) -> Source:
    whole = _open_whole(address, split, uri)
    if "only" not in address.options:
        return whole
    others = sorted((name, value) for name, value in address.options.items() if name != "only")
    return only(whole, address.options["only"], str(address), (str(address), *others, split, len(whole)))


def _open_whole(address: Address, split: str, uri: str) -> Source:
    scheme = schemes.find(address.scheme)
    if scheme is None:
        known = schemes.names()
        near = difflib.get_close_matches(address.scheme, known, n=1)
        hint = f"; did you mean {near[0]}:?" if near else ""
        raise UsageError(f"unknown data source {uri!r}: expected one of {', '.join(s + ':…' for s in known)}{hint}")
    for option in address.options:
        if option not in {*OPTIONS, *scheme.OPTIONS}:
            raise UsageError(f"{address} has no option {option}: there is {', '.join([*OPTIONS, *scheme.OPTIONS])}")
    shares, there = address.shares, scheme.splits(address)
    own = address.names.get(split, split)
    if there and not shares:
        if divider := next((name for name in ("by", "stratify") if name in address.options), None):
            raise UsageError(f"{address} has splits of its own ({', '.join(there)}): leave out {divider}=")
        return scheme.open_split(address, own)
    if there:
        if double := next((name for name in shares if name in there), None):
            raise UsageError(
                f"{address} has a split {double!r} of its own: leave out {double}=, or name another split "
                f"(?train=train[:90%]&validation=train[90%:] for tfds)"
            )
        if split not in shares and split != "train":
            return scheme.open_split(address, own)
    shares = shares or {"validation": getattr(scheme, "SHARE", SHARE)}
    if split not in ("train", *shares):
        raise UsageError(f"no split {split!r} in {address.path}: it has train, {', '.join(shares)}")
    whole = scheme.open_split(address, address.names.get("train", "train") if there else None)
    keys = keys_of(whole, address.options.get("by"))
    stratify = address.options.get("stratify")
    classes = None if stratify is None else column(whole, stratify)
    return divided(whole, split, shares, where=str(address), keys=keys, classes=classes)
