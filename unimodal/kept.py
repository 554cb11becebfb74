"""What a model needs of its data and of files beside it, kept in the workdir, so that the workdir alone is enough to use it.

`from_data.json` holds names of classes, alphabets and palettes. `encoders/` holds the vocabularies that the config names by
their paths. config.json goes on naming the originals: what a run is does not depend on where its files lie.
"""

from __future__ import annotations

import atexit
import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from unimodal.data.encoders import encoder_files
from unimodal.errors import UsageError
from unimodal.storage import absolute, is_remote, write_whole

FILE = "from_data.json"
ENCODERS = "encoders"  # the folder, in which each vocabulary has a folder of its own
INDEX = "index.json"  # in it: path in the config → the copy's own path in the folder, and the hash of each of its files


def learned(tasks: Sequence[Any]) -> dict[str, Any]:
    """Dotted field → value, of every block of data that has a method `learned`."""
    found: dict[str, Any] = {}
    for task in tasks:
        segments = getattr(getattr(task, "sounds", None), "segments", "")
        for slot, block in vars(task).items():
            take: Any = getattr(block, "learned", None)
            if take is not None:
                values = take(task.source, segments)
                found |= {f"tasks.{task.name}.{slot}.{name}": value for name, value in values.items()}
    return found


def keep_learned(workdir: epath.PathLike, tasks: Sequence[Any]) -> None:
    """Write what the tasks took from their data into the workdir."""
    text = json.dumps(learned(tasks), indent=2, sort_keys=True, ensure_ascii=False)
    write_whole(epath.Path(workdir) / FILE, text)


def with_learned(workdir: epath.PathLike, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what the workdir says of the data. A run from before this was kept reads its data instead."""
    made = copy.deepcopy(dict(config))
    path = epath.Path(workdir) / FILE
    if not path.exists():
        return made
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it should be an object")
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}); remove it, and the names are read from the data") from error
    for place, value in found.items():
        *groups, last = place.split(".")
        group = made
        for name in groups:
            group[name] = dict(group.get(name) or {})
            group = group[name]
        group[last] = value
    return made


def keep_encoders(workdir: epath.PathLike, config: Mapping[str, Any]) -> None:
    """Copy the vocabularies that a config names into the workdir. Those that are there already stay as they are."""
    folder, kept = epath.Path(workdir) / ENCODERS, _index(workdir)
    new = [spec for spec in sorted(set(_named(config))) if spec not in kept]
    for spec in new:
        files, place = encoder_files(spec), folder / str(len(kept))
        if not is_remote(place):  # a bucket has no folders
            place.mkdir(parents=True, exist_ok=True)
        for file in files:
            (place / file.name).write_bytes(file.read_bytes())
        hashes = {file.name: _hash(file.read_bytes()) for file in files}
        kept[spec] = {"file": f"{place.name}/{files[0].name}", "sha256": hashes}
    if new:  # the index comes last, so that it names whole copies only
        write_whole(folder / INDEX, json.dumps(kept, indent=2, ensure_ascii=False))


def with_encoders(workdir: epath.PathLike, config: Mapping[str, Any], *, missing: bool = False) -> dict[str, Any]:
    """The config with the workdir's copies of vocabularies in the place of the originals.

    missing: only where an original is not there. Raises UsageError for a copy that is not as it was written.
    """
    kept = {
        spec: entry for spec, entry in _index(workdir).items() if not (missing and Path(spec).expanduser().exists())
    }
    if not kept:
        return dict(config)
    folder = absolute(workdir) / ENCODERS
    local = _fetched(folder, kept) if is_remote(folder) else Path(folder)
    for spec, entry in kept.items():
        for name, digest in entry["sha256"].items():
            path = (local / entry["file"]).with_name(name)
            if not path.is_file() or _hash(path.read_bytes()) != digest:
                raise UsageError(f"{path}, the copy of {spec}, is missing or was changed: put the original there again")
    return _replaced(config, lambda spec: str(local / kept[spec]["file"]) if spec in kept else spec)


def check_encoders(workdir: epath.PathLike, config: Mapping[str, Any]) -> None:
    """Raises UsageError for a vocabulary that is another one now than when the run began: its ids would mean other things."""
    kept = _index(workdir)
    for spec in sorted(set(_named(config)) & kept.keys()):
        if Path(spec).expanduser().exists():
            now = {file.name: _hash(file.read_bytes()) for file in encoder_files(spec)}
            changed = [name for name, digest in kept[spec]["sha256"].items() if now.get(name, digest) != digest]
            if changed:
                raise UsageError(
                    f"{spec}: {changed[0]} has changed since {workdir} began, whose copy is in {ENCODERS}/"
                    f"{kept[spec]['file'].split('/')[0]}; put it back, or choose another workdir"
                )


def _named(config: Mapping[str, Any]) -> Iterator[str]:
    """The paths of vocabularies in a config: fields called `encoder`, of tasks and of evaluations."""
    found: list[str] = []
    _replaced(config, lambda spec: found.append(spec) or spec)
    return (spec for spec in found if spec != "bytes")


def _replaced(config: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(inner, key) for key, inner in value.items()}
        return change(value) if name == "encoder" and isinstance(value, str) else value

    return {key: walk(value, "") if key in ("tasks", "evaluations") else value for key, value in config.items()}


def _index(workdir: epath.PathLike) -> dict[str, Any]:
    path = epath.Path(workdir) / ENCODERS / INDEX
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all("file" in entry and "sha256" in entry for entry in found.values()):
            raise ValueError("it should name a file and its hashes for each vocabulary")
        return found
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no index ({error}); remove it, and the vocabularies are copied again") from error


def _fetched(folder: epath.Path, kept: Mapping[str, Any]) -> Path:
    """Copies of a bucket's copies, for readers that know files only; they go when the program ends."""
    local = Path(tempfile.mkdtemp(prefix="unimodal-encoders-"))
    atexit.register(shutil.rmtree, local, ignore_errors=True)
    for entry in kept.values():
        number = entry["file"].split("/")[0]
        (local / number).mkdir()
        for name in entry["sha256"]:
            (local / number / name).write_bytes((folder / number / name).read_bytes())
    return local


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
