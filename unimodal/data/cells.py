"""Cells of a table as what they stand for: a path becomes the bytes of its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from unimodal.data.files import read_inside
from unimodal.errors import RecordError

KINDS = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"),
}
"""Column of a record → endings of the files that it holds."""
PATHS = (
    "file_name",
    "filename",
    "file",
    "path",
    "filepath",
    "image_path",
    "audio_path",
    "audio_filepath",
    "image_file",
)
"""Columns that name a file; the file comes under `image` or `audio`."""
MEDIA = ("image", "img", "picture", "photo", "audio", "sound", "speech", "wav", "recording")
"""Columns that hold a picture or a sound, or the path of one."""


def kind_of(name: str) -> str | None:
    """ "image" or "audio" by the ending of a file's name."""
    ending = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    return next((kind for kind, endings in KINDS.items() if ending in endings), None)


def opened(row: Mapping[str, Any], folder: str, name: str) -> dict[str, Any]:
    """The row with its pictures and sounds as bytes. Paths count from `folder`, and may not lead out of it.

    A dict of `bytes` and `path`, as Hugging Face's tables have them, is what its bytes are, or its path. A column named in
    PATHS becomes `image` or `audio` by the file's ending. Raises RecordError for a file that is not there.
    """
    made = dict(row)
    for column, value in row.items():
        if isinstance(value, Mapping) and "bytes" in value and set(value) <= {"bytes", "path"}:
            inside = value["bytes"]
            made[column] = inside if inside is not None else read_inside(folder, str(value.get("path")), name)
        elif isinstance(value, Mapping) and {"array", "sampling_rate"} <= set(value):
            made[column], made["rate"] = np.asarray(value["array"], np.float32), int(value["sampling_rate"])
        elif not isinstance(value, str):
            continue
        elif column in PATHS and (kind := kind_of(value)) is not None and kind not in row:
            made[kind] = read_inside(folder, value, name)
        elif column in MEDIA or column.endswith(("_image", "_audio")):
            if kind_of(value) is None:
                raise RecordError(f"{name}: {value[:80]!r} under {column!r} is no path of a picture or a sound")
            made[column] = read_inside(folder, value, name)
    if str(made.get("rate", "")).isdecimal():
        made["rate"] = int(made["rate"])
    return made
