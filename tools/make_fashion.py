"""Makes ArrayRecord files of Fashion-MNIST: grey pictures of 28×28 pixels in ten classes (MIT licence).

    python tools/make_fashion.py OUT [--train 2000] [--validation 2000] [--raw raw/]

OUT gets train.array_record, validation.array_record and classes.txt: the first so many pictures of the set's own training
and test files. Fetches the Debian package dataset-fashion-mnist; needs `apt-get` and `dpkg-deb`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fetch import fetch_debian
from PIL import Image

from unimodal.data.sources import write_array_record

PACKAGE, FOLDER = "dataset-fashion-mnist", Path("usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILES = {"train": ("train", 60_000), "validation": ("t10k", 10_000)}


def read_idx(path: Path) -> np.ndarray:
    """A file of the idx format with unsigned bytes: a header of big-endian sizes, then the values."""
    data = gzip.decompress(path.read_bytes())
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def records(folder: Path, split: str, count: int) -> Iterator[dict[str, Any]]:
    """The first `count` pictures of a split, as PNG bytes with a label."""
    name = FILES[split][0]
    pictures = read_idx(folder / f"{name}-images-idx3-ubyte.gz")[:count]
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz")[:count]
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        out = io.BytesIO()
        Image.fromarray(picture).save(out, format="PNG")
        yield {"id": f"{name}-{i}", "image": out.getvalue(), "label": int(label)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the files")
    parser.add_argument("--train", type=int, default=2000, help="training pictures (at most 60000)")
    parser.add_argument("--validation", type=int, default=2000, help="validation pictures (at most 10000)")
    parser.add_argument("--raw", type=Path, help="keep the package here (default: nowhere)")
    given = parser.parse_args()
    for split, (_, most) in FILES.items():
        if not 1 <= getattr(given, split) <= most:
            parser.error(f"--{split} must be from 1 to {most}, but is {getattr(given, split)}")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        raw = given.raw or Path(scratch)
        raw.mkdir(parents=True, exist_ok=True)
        folder = fetch_debian(PACKAGE, raw) / FOLDER
        for split in FILES:
            path = given.out / f"{split}.array_record"
            print(f"{path}: {write_array_record(path, records(folder, split, getattr(given, split)))} pictures")
    (given.out / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
