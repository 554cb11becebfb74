"""A folder of one's own files as a source: images, sounds or texts, flat or one subfolder per class."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import soundfile

from unimodal.errors import UsageError

KINDS = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3"),
}
SPLITS = ("train", "validation", "test")
_VALIDATION_IN_TEN = 1


@dataclasses.dataclass(frozen=True)
class FolderFiles:
    """Files of one kind. Records: `id` (path below the folder), `label` and `group` if there are class folders, and

    for images `image` (bytes), for sounds `audio` (bytes) and `rate`, both with `text` if a caption lies beside them
    (same name, .txt); for texts `text`.
    """

    root: Path
    kind: str
    files: tuple[Path, ...]
    classes: tuple[str, ...]
    captions: frozenset[Path]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.files[index]
        record: dict[str, Any] = {"id": path.relative_to(self.root).as_posix()}
        if self.kind == "text":
            record["text"] = _read_text(path)
        else:
            record[self.kind] = path.read_bytes()
            if self.kind == "audio":
                record["rate"] = _rate(path, record["audio"])
            if self.captions:
                record["text"] = _read_text(path.with_suffix(".txt")).strip()
        if self.classes:
            record["group"] = _class_of(self.root, path)
            record["label"] = self.classes.index(record["group"])
        return record


def open_folder(root: Path, split: str) -> FolderFiles:
    """The files of one split below `root`.

    With folders ROOT/train, ROOT/validation, ROOT/test those are the splits. Without, about one file in ten is
    validation and the rest train, chosen by a hash of the file's path, so a file stays where it is when others come.
    Labels are the places of the class folders' names in sorted order, over all splits.

    Raises UsageError for a missing folder, an unknown or empty split, files of several kinds, files beside class
    folders, and captions that only some files have.
    """
    if not root.is_dir():
        raise UsageError(f"no folder {root}: expected one with images, sounds or .txt files, or with class folders")
    divided = [name for name in SPLITS if (root / name).is_dir()]
    allowed = divided or ["train", "validation"]
    if split not in allowed:
        raise UsageError(f"no split {split!r} in {root}: it has {', '.join(allowed)}")
    everything = sorted(path for path in root.rglob("*") if path.is_file() and not _hidden(root, path))
    if divided:
        everything = [path for path in everything if path.relative_to(root).parts[0] in divided]
    kind, files = _one_kind(root, everything)
    classes = _classes(root, files)
    captions = _captions(root, kind, files, set(everything))
    if divided:
        chosen = [path for path in files if path.relative_to(root).parts[0] == split]
    else:
        chosen = [path for path in files if _hashed_split(root, path) == split]
    if not chosen:
        raise UsageError(f"split {split!r} of {root} is empty: make {root / 'train'} and {root / 'validation'} folders")
    return FolderFiles(root, kind, tuple(chosen), classes, frozenset(captions))


def _one_kind(root: Path, files: list[Path]) -> tuple[str, list[Path]]:
    found = {kind: [path for path in files if path.suffix.lower() in endings] for kind, endings in KINDS.items()}
    media = [kind for kind, paths in found.items() if paths]
    if len(media) > 1:
        raise UsageError(f"{root} mixes {' and '.join(media)} files: one folder holds one kind")
    if media:
        return media[0], found[media[0]]
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    if not texts:
        endings = " ".join(ending for group in KINDS.values() for ending in group)
        raise UsageError(f"no data in {root}: expected files ending in {endings} .txt")
    return "text", texts


def _classes(root: Path, files: list[Path]) -> tuple[str, ...]:
    names = {_class_of(root, path) for path in files}
    if names == {None}:
        return ()
    if None in names:
        loose = next(path for path in files if _class_of(root, path) is None)
        raise UsageError(f"{loose} lies beside class folders: put every file in one, or none")
    return tuple(sorted(name for name in names if name is not None))


def _class_of(root: Path, path: Path) -> str | None:
    parts = path.relative_to(root).parts
    below = parts[1:] if parts[0] in SPLITS else parts
    return below[0] if len(below) > 1 else None


def _captions(root: Path, kind: str, files: list[Path], everything: set[Path]) -> set[Path]:
    if kind == "text":
        return set()
    captions = {path.with_suffix(".txt") for path in files} & everything
    if captions:
        bare = next((path for path in files if path.with_suffix(".txt") not in captions), None)
        if bare is not None:
            raise UsageError(
                f"{bare} has no caption {bare.with_suffix('.txt').name}, but other files in {root} have one"
            )
    return captions


def _hashed_split(root: Path, path: Path) -> str:
    name = path.relative_to(root).with_suffix("").as_posix()
    tenth = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[0] * 10 // 256
    return "validation" if tenth < _VALIDATION_IN_TEN else "train"


def _hidden(root: Path, path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error


def _rate(path: Path, data: bytes) -> int:
    try:
        return soundfile.info(io.BytesIO(data)).samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UsageError(f"{path} is not a sound libsndfile can read") from error
