"""Makes triplets for composed search of emoji and their modifiers: a picture, words for what is different, the other picture.

    python tools/fetch.py raw/
    python tools/make_emoji_changes.py raw/ [--out data/emoji_changes]
    python launch.py train --config=configs/composed.py:size=modifiers --workdir=runs/modifiers

Each emoji that comes in several skin tones is asked for in another tone. The split is that of the embedded set, by concept; what
validation says ("dark-skinned") training does not.
Deterministic.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make_emoji import cluster, load, picture_name, shrink, split

from unimodal.data.image import encode_image
from unimodal.data.sources import write_array_record

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
# By split: how a tone is asked for.
TONE_WORDS = {
    "train": ("with {} skin", "{} skin tone", "the skin {}", "but with {} skin"),
    "validation": ("{}-skinned", "a {} complexion"),
}


def pictures(raw: Path) -> dict[str, dict[str, bytes]]:
    """By the code points of an emoji without tone: its pictures by tone, "" without any."""
    found: dict[str, dict[str, bytes]] = {}
    for entry in json.loads((raw / "emojibase-data" / "en" / "data.json").read_text("utf-8")):
        skins = [each for each in entry.get("skins", ()) if isinstance(each["tone"], int)]  # two people may have two
        here = {"": entry["hexcode"], **{TONES[each["tone"] - 1]: each["hexcode"] for each in skins}}
        paths = {tone: raw / "asturur-noto-emoji" / "png" / "128" / picture_name(code) for tone, code in here.items()}
        there = {tone: encode_image(shrink(path.read_bytes())) for tone, path in paths.items() if path.is_file()}
        if "" in there and len(there) > 1:
            found[entry["hexcode"]] = there
    return found


def triplets(
    everything: dict[str, dict[str, bytes]], validation: frozenset[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with the split that it belongs to."""
    for code, tones in everything.items():
        half = "validation" if code in validation else "train"
        for before in tones:
            for after in (tone for tone in tones if tone not in ("", before)):
                name = f"{code} {before or 'plain'} to {after}"
                words = chosen(TONE_WORDS[half], name).format(after)
                yield half, {"id": name, "image": tones[before], "changed": tones[after], "text": words}


def chosen(ways: tuple[str, ...], name: str) -> str:
    return ways[hashlib.sha256(name.encode()).digest()[0] % len(ways)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder that fetch.py filled")
    parser.add_argument("--out", type=Path, default=Path("data/emoji_changes"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    emoji = load(arguments.raw)
    held_out = frozenset(record["id"] for record in split(emoji, cluster(emoji))["validation"])
    made: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for half, record in triplets(pictures(arguments.raw), held_out):
        made[half].append(record)
    for half, records in made.items():
        count = write_array_record(arguments.out / f"{half}.array_record", records)
        print(f"{half}: {count} triplets, {len({record['id'].split()[0] for record in records})} emoji")


if __name__ == "__main__":
    main()
