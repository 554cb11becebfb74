"""The command line of tools that make ArrayRecord files of a published set of pictures in classes."""

from __future__ import annotations

import argparse
import gzip
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.sources import write_array_record

Records = Callable[[Path, str, int], Iterator[dict[str, Any]]]
"""A folder, a split and a count → the first so many records of the split."""


def png(picture: np.ndarray) -> bytes:
    """Pixels uint8 [H,W] or [H,W,3] → a PNG file."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format="PNG")
    return out.getvalue()


def read_idx(path: Path) -> np.ndarray:
    """A file of the idx format with unsigned bytes, gzipped or not: a header of big-endian sizes, then the values."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def idx_records(images: Path, labels: Path, name: str, count: int) -> Iterator[dict[str, Any]]:
    """The first `count` pictures of two idx files, as PNG bytes with a label. Ids begin with `name`."""
    both = zip(read_idx(images)[:count], read_idx(labels)[:count], strict=True)
    for i, (picture, label) in enumerate(both):
        yield {"id": f"{name}-{i}", "image": png(picture), "label": int(label)}


def make(
    doc: str | None,
    sizes: Mapping[str, tuple[int, int]],
    classes: Sequence[str],
    fetch: Callable[[Path], Path],
    records: Records,
) -> None:
    """Write OUT/train.array_record, OUT/validation.array_record and OUT/classes.txt.

    sizes: split → how many pictures by default, and at most. fetch: a folder for packages → the one with the set's files.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the files")
    for split, (usual, most) in sizes.items():
        parser.add_argument(f"--{split}", type=int, default=usual, help=f"{split} pictures (at most {most})")
    parser.add_argument("--raw", type=Path, help="keep the package here (default: nowhere)")
    given = parser.parse_args()
    for split, (_, most) in sizes.items():
        if not 1 <= getattr(given, split) <= most:
            parser.error(f"--{split} must be from 1 to {most}, but is {getattr(given, split)}")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        raw = given.raw or Path(scratch)
        raw.mkdir(parents=True, exist_ok=True)
        folder = fetch(raw)
        for split in sizes:
            path = given.out / f"{split}.array_record"
            print(f"{path}: {write_array_record(path, records(folder, split, getattr(given, split)))} pictures")
    (given.out / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
