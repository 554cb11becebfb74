"""Makes ArrayRecord files of Fashion-MNIST: grey pictures of 28×28 pixels in ten classes (MIT licence).

    python tools/make_fashion.py OUT [--train 2000] [--validation 2000] [--raw raw/]

OUT gets train.array_record, validation.array_record and classes.txt: the first so many pictures of the set's own training
and test files. Fetches the Debian package dataset-fashion-mnist; needs `apt-get` and `dpkg-deb`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fetch import fetch_debian
from labelled_pictures import idx_records, make

PACKAGE, FOLDER = "dataset-fashion-mnist", Path("usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILES = {"train": ("train", 60_000), "validation": ("t10k", 10_000)}


def records(folder: Path, split: str, count: int) -> Iterator[dict[str, Any]]:
    """The first `count` pictures of a split, as PNG bytes with a label."""
    name = FILES[split][0]
    return idx_records(folder / f"{name}-images-idx3-ubyte.gz", folder / f"{name}-labels-idx1-ubyte.gz", name, count)


def main() -> None:
    sizes = {split: (2000, most) for split, (_, most) in FILES.items()}
    make(__doc__, sizes, CLASSES, lambda raw: fetch_debian(PACKAGE, raw) / FOLDER, records)


if __name__ == "__main__":
    main()
