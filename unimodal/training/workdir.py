"""Ownership of a workdir: its config.json says which run may go on there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
from etils import epath

from unimodal.errors import UsageError
from unimodal.storage import is_remote, one_line, write_whole


def claim_workdir(
    workdir: epath.PathLike,
    config: Mapping[str, Any],
    *,
    may_differ: tuple[str, ...] = (),
    renew: bool = False,
    meaning: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> dict[str, tuple[Any, Any]]:
    """Make `workdir` ours: write config.json, or check that the one that is there says the same.

    `may_differ`: dotted fields or groups, as patterns, that do not change what is learned (the mesh, how often to log).
    Returns those that do differ, with their values there and now; `renew` writes the values of now. `meaning`: what both
    configs are compared by, so that a field written in another way, or left at its default, is no difference.
    Raises UsageError, naming the fields, if the workdir belongs to another config, or cannot be written.
    """
    workdir = epath.Path(workdir)
    path = workdir / "config.json"
    with _of_the_workdir(workdir):
        if not is_remote(workdir):  # a bucket has no folders
            workdir.mkdir(parents=True, exist_ok=True)
        differ = differences(workdir, config, may_differ=may_differ, meaning=meaning)
        if path.exists() and not (renew and differ):
            return differ
        # Every process claims a folder, at the same time; a bucket refuses many writers of one object.
        if jax.process_index() == 0 or not is_remote(workdir):
            # In its own order: a tokenizer has the width of the first backbone if none bears its name.
            text = json.dumps(config, indent=2)
            write_whole(path, text, suffix=f".tmp{jax.process_index()}")
        return differ


def differences(
    workdir: epath.PathLike,
    config: Mapping[str, Any],
    *,
    may_differ: tuple[str, ...] = (),
    meaning: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> dict[str, tuple[Any, Any]]:
    """What `claim_workdir` returns and raises. Writes nothing, and a workdir without a config.json has no differences."""
    workdir = epath.Path(workdir)
    path = workdir / "config.json"
    with _of_the_workdir(workdir):
        if not path.exists():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise UsageError(f"{path} is no config, which is an object; choose another workdir")
        there = meaning(found)
        return _compare(dict(there), dict(meaning(config)), workdir, may_differ)


@contextlib.contextmanager
def _of_the_workdir(workdir: epath.Path) -> Iterator[None]:
    """Turn what reading and writing there may raise into a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{workdir / 'config.json'} is not JSON ({error}); choose another workdir") from error
    except Exception as error:
        if not isinstance(error, OSError) and not is_remote(workdir):  # a bucket's client has errors of its own
            raise
        raise UsageError(f"cannot write in workdir {workdir}: {one_line(error)}") from error


def _compare(
    old: dict[str, Any], new: dict[str, Any], workdir: epath.Path, may_differ: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
    before, after = (_flat(json.loads(json.dumps(config))) for config in (old, new))  # a tuple is a list there
    differ = {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    allowed = {name for name in differ for p in may_differ if fnmatchcase(name, p) or fnmatchcase(name, f"{p}.*")}
    fields = [name for name in differ if name not in allowed]
    if fields:
        shown = "; ".join(f"{name}: {differ[name][0]!r} there, {differ[name][1]!r} now" for name in fields[:4])
        more = f"; and {len(fields) - 4} more" if len(fields) > 4 else ""
        raise UsageError(
            f"workdir {workdir} belongs to another config ({shown}{more}); choose another workdir, or go on with what fits by "
            f"--adapt"
        )
    return differ


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{name}" if prefix else name).items()}
