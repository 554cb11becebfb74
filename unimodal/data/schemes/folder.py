"""`folder:DIR`: one's own files as a source: images, sounds or texts, flat or one subfolder per class."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.data import metadata
from unimodal.data.address import SPLITS, Address
from unimodal.data.audio import sound_rate
from unimodal.data.cells import KINDS
from unimodal.data.dividing import hashed
from unimodal.data.links import files_below
from unimodal.errors import RecordError, UsageError

logger = logging.getLogger(__name__)

FORM = "folder:DIR"
OPTIONS = {"links": "follow, to read links that lead out of the folder, and links to folders"}
SHARE = 26 / 256
"""Of validation in a folder without splits: about one file in ten."""
_OTHER_NAMES = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "validation"}
_OF_CLASS = ("class", "group", "label")
_UNREAD = ("readme", "license", "licence")


@dataclasses.dataclass(frozen=True)
class FolderFiles:
    """Files of one kind. Records have `id` (path below the folder) and

    - for images `image` (bytes), for sounds `audio` (bytes) and `rate`, for texts `text`;
    - `text`, if a caption lies beside the file (same name, .txt);
    - the columns of the file's row in a table beside them (`metadata.NAMES`), by their names;
    - if there are class folders and no columns of such a name, `class` and `group`, the folder's name, and `label`, its
      place in `classes`.
    """

    root: Path
    kind: str
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    captions: frozenset[Path]
    splits: tuple[str, ...] = ()
    rows: Mapping[Path, Mapping[str, Any]] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.files[index]
        record: dict[str, Any] = {}
        if self.kind != "text":
            record[self.kind] = path.read_bytes()
            if self.kind == "audio":
                record["rate"] = sound_rate(record["audio"], str(path))
        return {**record, **{name: self._beside(path, name) for name in self._columns()}}

    def class_names(self, column: str) -> tuple[str, ...]:
        """The names that the numbers under `column` stand for, () if they stand for nothing."""
        return self.classes if column == "label" else ()

    def column(self, name: str) -> list[Any]:
        """One value of every record, without reading pictures or sounds. Raises UsageError for what records have not."""
        if name not in self._columns():
            raise UsageError(f"files in {self.root} have no {name!r}: there is {', '.join(self._columns())}")
        return [self._beside(path, name) for path in self.files]

    def id_at(self, index: int) -> str:
        """The file's path below the folder."""
        return _below(self.root, self.files[index])

    def keys(self) -> np.ndarray:
        """A hash of each file's path without its ending."""
        return hashed(_below(self.root, path).removesuffix(path.suffix) for path in self.files)

    def _columns(self) -> list[str]:
        """All but the picture or sound itself."""
        text = ["text"] if self.kind == "text" or self.captions else []
        return ["id", *text, *next(iter(self.rows.values()), ()), *(_OF_CLASS if self.classes else ())]

    def _beside(self, path: Path, name: str) -> Any:
        if path in self.rows and name in self.rows[path]:
            return self.rows[path][name]
        if name == "id":
            return _below(self.root, path)
        if name == "text":
            return _read_text(path) if self.kind == "text" else _read_text(path.with_suffix(".txt")).strip()
        found = _class_of(self.root, path, self.splits)
        return self.classes.index(str(found)) if name == "label" else found


def splits(address: Address) -> tuple[str, ...]:
    """The folders train, validation and test that there are; () where the files are to be divided."""
    root = Path(address.path).expanduser()
    wanted = [*SPLITS, *address.names.values()]
    return tuple(name for name in wanted if (root / name).is_dir())


def open_split(address: Address, split: str | None) -> FolderFiles:
    """The files of one split, or all of a folder that has none.

    With folders ROOT/train, ROOT/validation, ROOT/test those are the splits. Labels are the places of the class folders'
    names in sorted order, over all splits: by value where all are whole numbers, by letter otherwise. Files that are not
    read are warned of, once.

    Raises UsageError for a missing folder, an unknown or empty split, files of several kinds, files beside class
    folders, captions or rows of metadata that only some files have, and for columns that would hide each other.
    """
    root, divided = Path(address.path).expanduser(), splits(address)
    if "://" in address.path:
        raise UsageError(
            f"{address}: a folder in a bucket is not read; `data convert` a copy of it, or write tar shards (wds:)"
        )
    if not root.is_dir():
        raise UsageError(f"no folder {root}: expected one with images, sounds or .txt files, or with class folders")
    if split is not None and split not in divided:
        other = next((n for n, right in _OTHER_NAMES.items() if right == split and (root / n).is_dir()), None)
        hint = f"; rename {other} to {split}, or say ?{split}={other}" if other else ""
        raise UsageError(f"no split {split!r} in {root}: it has {', '.join(divided)}{hint}")
    found, links = files_below(root, _follows(address))
    _warn_of_links(root, [path for path in links if not _hidden(root, path)])
    everything = [path for path in found if not _hidden(root, path)]
    inside = [path for path in everything if not divided or _below(root, path).partition(os.sep)[0] in divided]
    tables = [path for path in everything if path.name in metadata.NAMES and (path.parent == root or path in inside)]
    kind, files = _one_kind(root, inside)
    captions = _captions(root, kind, files, set(inside))
    rows = metadata.read_rows(tables, files)
    labelled = any(name in row for name in _OF_CLASS for row in rows.values())
    classes = () if labelled else _classes(root, files, divided)
    _warn_of_unread(root, kind, len(everything), sorted(set(everything) - {*tables, *files, *captions}))
    chosen = [path for path in files if split is None or _below(root, path).partition(os.sep)[0] == split]
    if not chosen:
        raise UsageError(f"split {split!r} of {root} is empty: there are no {kind} files in {root / (split or '')}")
    rows = {path: rows[path] for path in chosen if path in rows}
    source = FolderFiles(root, kind, tuple(chosen), classes, frozenset(captions), divided, rows)
    _check_rows(source)
    return source


def _check_rows(source: FolderFiles) -> None:
    """Every file of the split has a row of metadata, or none has; no column hides what the file itself has."""
    if not source.rows:
        return
    bare = next((path for path in source.files if path not in source.rows), None)
    if bare is not None:
        raise UsageError(f"{bare} has no row in metadata.csv or metadata.jsonl, but other files of its split have one")
    row = next(iter(source.rows.values()))
    own = [source.kind, "id", *(["rate"] if source.kind == "audio" else []), *(["text"] if source.captions else [])]
    if hidden := next((name for name in own if name in row), None):
        raise UsageError(f"column {hidden!r} of the metadata in {source.root} would hide the file's own: rename it")


def _follows(address: Address) -> bool:
    if (value := address.options.get("links")) not in (None, "follow"):
        raise UsageError(f"{address}: links={value} should be follow, or be left out")
    return "links" in address.options


def _warn_of_links(root: Path, links: list[Path]) -> None:
    if links:
        first = links[0]
        _say_once(
            f"{len(links)} links in {root} lead elsewhere and are not read, such as {first.relative_to(root)} → "
            f"{os.readlink(first)}: ?links=follow reads them"
        )


def _warn_of_unread(root: Path, kind: str, total: int, unread: list[Path]) -> None:
    unread = [path for path in unread if path.stem.lower() not in _UNREAD]
    if unread:
        beside = "" if kind == "text" else ", captions NAME.txt"
        _say_once(
            f"{len(unread)} of {total} files in {root} are not read, such as {unread[0].relative_to(root)}: "
            f"a folder of this kind has {kind} files{beside} and metadata.csv or metadata.jsonl"
        )


@functools.cache
def _say_once(text: str) -> None:
    logger.warning("%s", text)


def _one_kind(root: Path, files: list[Path]) -> tuple[str, list[Path]]:
    suffixed = [(path, path.suffix.lower()) for path in files]
    found = {kind: [path for path, suffix in suffixed if suffix in endings] for kind, endings in KINDS.items()}
    media = [kind for kind, paths in found.items() if paths]
    if len(media) > 1:
        raise UsageError(f"{root} mixes {' and '.join(media)} files: one folder holds one kind")
    if media:
        return media[0], found[media[0]]
    texts = [path for path, suffix in suffixed if suffix == ".txt"]
    if not texts:
        endings = " ".join(ending for group in KINDS.values() for ending in group)
        raise UsageError(f"no data in {root}: expected files ending in {endings} .txt")
    return "text", texts


def _classes(root: Path, files: list[Path], splits: tuple[str, ...]) -> tuple[str, ...]:
    names = {_class_of(root, path, splits) for path in files}
    if names == {None}:
        return ()
    if None in names:
        loose = next(path for path in files if _class_of(root, path, splits) is None)
        raise UsageError(f"{loose} lies beside class folders: put every file in one, or none")
    found = sorted(name for name in names if name is not None)
    if all(name.isdecimal() for name in found):
        found = sorted(found, key=int)
    return tuple(found)


@functools.lru_cache(maxsize=64)  # a record asks three times
def _class_of(root: Path, path: Path, splits: tuple[str, ...]) -> str | None:
    parts = _below(root, path).split(os.sep)
    below = parts[1:] if parts[0] in splits else parts
    return below[0] if len(below) > 1 else None


def _captions(root: Path, kind: str, files: list[Path], everything: set[Path]) -> set[Path]:
    if kind == "text" or not any(path.name.endswith(".txt") for path in everything):
        return set()
    captions = {path.with_suffix(".txt") for path in files} & everything
    if captions:
        bare = next((path for path in files if path.with_suffix(".txt") not in captions), None)
        if bare is not None:
            raise UsageError(
                f"{bare} has no caption {bare.with_suffix('.txt').name}, but other files in {root} have one"
            )
    return captions


def _hidden(root: Path, path: Path) -> bool:
    return any(part.startswith(".") for part in _below(root, path).split(os.sep))


def _below(root: Path, path: Path) -> str:
    """The path of a file below the folder, as text."""
    whole, before = str(path), str(root) + os.sep
    # In a tenth of the time of `relative_to`, which matters beside a small picture.
    return whole[len(before) :] if whole.startswith(before) else str(path.relative_to(root))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 text (byte {error.start})") from error
