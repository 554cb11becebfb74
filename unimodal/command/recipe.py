"""A recipe, or the config.json that a run has left, as a ConfigDict; and its fields changed by a command line."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from unimodal.configuration import nearest
from unimodal.errors import UsageError, broken
from unimodal.storage import one_line


def load_recipe(file: Path, argument: str | None) -> ConfigDict:
    """Call get_config(), or get_config(argument), of a file. Raises UsageError with file and line."""
    name = f"unimodal_recipe_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    # Register the module: dataclasses in a recipe look themselves up by its name.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise UsageError(f"{file} has no get_config(), which a recipe must have")
        given = () if argument is None else (argument,)
        # Bind before calling: a TypeError from inside the recipe must not be taken for a missing argument.
        try:
            inspect.signature(get_config).bind(*given)
        except TypeError as error:
            wants = f"an argument, as in {file.stem}:ARGUMENT" if argument is None else "no argument after the colon"
            raise UsageError(f"the recipe {file} takes {wants}") from error
        config = get_config(*given)
    except ValueError as error:  # a recipe's own way to refuse its argument
        raise UsageError(" ".join(str(error).split())) from error
    except Exception as error:
        raise broken(file, error) from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"get_config() of {file} must return a ConfigDict, but returns {type(config).__name__}")
    return config


def config_of_workdir(workdir: epath.Path) -> ConfigDict:
    """The config that a run has left in its workdir. Raises UsageError if there is none."""
    path = workdir / "config.json"
    try:
        return ConfigDict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UsageError(f"{workdir} is not a workdir: it has no config.json; give --config, or train first") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a config: {one_line(error)}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {one_line(error)}") from error


def as_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as nested dictionaries of JSON values."""
    return json.loads(config.to_json_best_effort())


def change(config: ConfigDict, where: str, text: str) -> None:
    """Set a dotted field to what `text` says, read as the kind of value that is there. Raises UsageError.

    Whether the value is right is for `configuration.typed` to say, which knows the dataclasses.
    """
    *path, last = where.split(".")
    if path[:1] == ["evaluations"] and len(path) > 1:
        _attach(config, path[1:], last, text)
        return
    group: Any = config
    for depth, name in enumerate([*path, last]):
        here = ".".join([*path, last][: depth + 1])
        if not isinstance(group, ConfigDict):
            raise UsageError(f"unknown config field {here}: {'.'.join(path[:depth])} is a value, not a group of fields")
        if name not in group:
            raise UsageError(f"unknown config field {here}; {nearest(name, list(group.keys()))}")
        if depth < len(path):
            group = group[name]
    now: Any = group[last]
    # Refuse a group as a whole: its text would become a string where fields were.
    if isinstance(now, ConfigDict):
        fields = ", ".join(now) or "none"
        raise UsageError(f"config field {where} is a group, whose fields are set one by one: {fields}")
    with group.ignore_type():
        group[last] = _read(text, now, group.get_type(last), where)


def _attach(config: ConfigDict, path: list[str], last: str, text: str) -> None:
    """Set a field of an evaluation, which a command line may add to those of the recipe."""
    with config.unlocked():
        place: Any = config
        for name in ("evaluations", *path):
            if name not in place:
                place[name] = ConfigDict()
            place = place[name]
            if not isinstance(place, ConfigDict):
                raise UsageError(f"config field evaluations.{'.'.join(path)} is a value, not a group of fields")
        value = _literal(text)
        with place.ignore_type():
            place[last] = text if value is None and text != "None" else value


def _read(text: str, now: Any, kind: type, where: str) -> Any:
    if text == "None":
        return None
    if kind is bool:
        words = {"true": True, "false": False, "1": True, "0": False}
        if text.lower() not in words:
            raise _not(text, "true or false", where)
        return words[text.lower()]
    if kind in (int, float):
        return _number(text, kind, where)
    if kind in (tuple, list):
        return _several(text, now or ())
    if kind is type(None):  # nothing there says what it is to be
        value = _literal(text)
        return text if value is None else value
    return text


def _number(text: str, kind: type, where: str) -> int | float:
    for read in (int, float):  # 2.5 where the recipe has 1: the dataclass decides
        try:
            return read(text)
        except ValueError:
            continue
    raise _not(text, kind.__name__, where)


def _several(text: str, now: tuple[Any, ...] | list[Any]) -> tuple[Any, ...]:
    """(a, b), [a, b] or a,b. Words stay words where there were words before."""
    words = all(isinstance(value, str) for value in now)
    whole = _literal(text)
    if isinstance(whole, tuple | list) and text.strip()[:1] in "([":
        return tuple(whole)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if words and now:
        return tuple(parts)
    read = [_literal(part) for part in parts]
    return tuple(part if value is None else value for part, value in zip(parts, read, strict=True))


def _literal(text: str) -> Any:
    """A number, a truth value, a text in quotes, or several of them; None for anything else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _not(text: str, what: str, where: str) -> UsageError:
    short = text if len(text) <= 60 else f"{text[:60]}…"
    return UsageError(f"config field {where} must be {what}, but is {short!r}")
