"""Turns a mapping into a frozen dataclass, or raises one clear line. Below this module no config is a dictionary."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from unimodal.errors import UsageError

T = TypeVar("T")


def typed(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Make `cls(**mapping)` with every key and type checked.

    Lists become tuples. Whole numbers become floats where the field is one. Groups become the dataclass of their field,
    and fields that a group leaves out are as in the field's default. Raises UsageError for an unknown key (with the
    nearest right one), a missing one, or a wrong type. `where` is the dotted place in the config.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in group(mapping, where).items():
        if key not in fields:
            raise UsageError(f"unknown config field {where}.{key}; {nearest(key, list(fields))}")
        if value is None and is_brought(fields[key]):  # unset: as by default
            continue
        values[key] = _checked(_filled(value, fields[key].default), hints[key], f"{where}.{key}")
    required = (
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in values
    )
    if missing := next(required, None):
        raise UsageError(f"config field {where}.{missing} is missing")
    return cls(**values)


def changed(instance: T, mapping: Mapping[str, Any], where: str) -> T:
    """Replace the fields that a mapping gives, checked as in `typed`. Groups may give some of their fields."""
    there: dict[str, Any] = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}  # pyright: ignore
    given = {name: _filled(value, there.get(name)) for name, value in group(mapping, where).items()}
    return typed(type(instance), {**there, **given}, where)


def group(value: Any, where: str) -> Mapping[str, Any]:
    """Return `value` if it is a mapping. Raises UsageError for anything else."""
    if not isinstance(value, Mapping):
        raise UsageError(f"config field {where} must be a group of fields, but is {value!r}")
    return value


def nearest(word: str, known: Sequence[str]) -> str:
    """Suggest "did you mean …?", or list the known words. Initials count: lr is near learning_rate."""
    close = [name for name in known if "_" in name and "".join(part[:1] for part in name.split("_")) == word]
    close = close or difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there is {', '.join(sorted(known))}"


def _checked(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else typed(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _checked(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _wrong(value, hint, where)
        if arguments[-1] is Ellipsis:
            return tuple(_checked(v, arguments[0], where) for v in value)
        if len(value) != len(arguments):
            raise UsageError(f"config field {where} must have {len(arguments)} values, but is {tuple(value)!r}")
        return tuple(_checked(v, a, where) for v, a in zip(value, arguments, strict=True))
    if hint is int and isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UsageError(f"config field {where} must fit in 64 bits, but has {len(str(abs(value)))} digits")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (
        isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    ):
        return value
    raise _wrong(value, hint, where)


def _filled(value: Any, default: Any) -> Any:
    """Fill a group with the default of its field, such as a block of a task."""
    if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
        unset = {f.name for f in dataclasses.fields(default) if is_brought(f) and value.get(f.name) is None}
        given = {name: inner for name, inner in value.items() if name not in unset}
        return {**{f.name: getattr(default, f.name) for f in dataclasses.fields(default)}, **given}
    return value


def is_brought(field: dataclasses.Field[Any]) -> bool:
    """True if a field comes with the weights where a config leaves it unset (`data.blocks.brought`)."""
    return bool(field.metadata.get("brought"))


def _wrong(value: Any, hint: Any, where: str) -> UsageError:
    name = getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
    return UsageError(f"config field {where} must be {name}, but is {value!r}")
