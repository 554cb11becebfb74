"""The command line of tools that make ArrayRecord files of a published set of pictures in classes."""

from __future__ import annotations

import argparse
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
