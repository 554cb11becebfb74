"""Makes the embedded emoji set: 32x32 pictures with English names, keywords and groups.

    python tools/make_emoji.py raw/ [--out unimodal/data/embedded/emoji]

Deterministic. The split is by concept: pictures that share a leading code point, differ only in gender, hair, colour
or direction, or look alike pixel by pixel are one cluster, and a cluster is wholly train or wholly validation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimodal.data.image import encode_image
from unimodal.data.pictures import decode_image
from unimodal.data.sources import EMOJI_GROUPS, write_array_record

SIZE = 32
VALIDATION_SHARE = 0.12
LOOKS_ALIKE = 6.0  # mean absolute difference per channel, of 255
Emoji = dict[str, Any]

# Sets of leading code points that are one concept under several names.
SAME = (
    "1F468 1F469 1F9D1 1F46A",  # man, woman, person, family: professions and families hang on these
    "1F466 1F467 1F9D2",  # boy, girl, child
    "1F474 1F475 1F9D3",  # old man, old woman, older person
    "1F934 1F478 1FAC5",  # prince, princess, person with crown
    "1F57A 1F483",  # man dancing, woman dancing
    "1F385 1F936",  # the Clauses
    "1F46B 1F46C 1F46D",  # couples holding hands
    "1F48F 1F491",  # kiss, couple with heart
    "1F470 1F935",  # bride, tuxedo
)
# Words that tell variants of one picture apart, and so are left out of what a cluster is known by.
VARIANTS = """
man woman person men women people boy girl male female merman mermaid red orange yellow green blue purple brown
black white grey pink light dark up down left right up-down left-right up-left up-right down-left down-right
upwards downwards leftwards rightwards north south east west back backhand curving turning small medium large
medium-small big one two three four five six seven eight nine ten eleven twelve thirty with of and in
"""
VARIANT_WORDS = frozenset(VARIANTS.split())


def load(raw: Path) -> list[Emoji]:
    """Every emoji with a group and a picture, without skin tones, in Unicode's order."""
    data = raw / "emojibase-data" / "en"
    messages = json.loads((data / "messages.json").read_text("utf-8"))
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    emoji: list[Emoji] = []
    for entry in json.loads((data / "data.json").read_text("utf-8")):
        group = groups.get(entry.get("group"))
        path = raw / "asturur-noto-emoji" / "png" / "128" / picture_name(entry["hexcode"])
        if group not in EMOJI_GROUPS or not path.is_file():
            continue
        image = shrink(path.read_bytes())
        emoji.append(
            {
                "order": entry["order"],
                "pixels": image,
                "id": entry["hexcode"],
                "image": encode_image(image),
                "name": entry["label"],
                "keywords": list(entry.get("tags", [])),
                "group": group,
                "label": EMOJI_GROUPS.index(group),
            }
        )
    return sorted(emoji, key=lambda e: e["order"])


def picture_name(hexcode: str) -> str:
    """File name of a code point sequence; the pictures' names leave out the variation selector FE0F."""
    return "emoji_u" + "_".join(code.lower() for code in hexcode.split("-") if code != "FE0F") + ".png"


def shrink(data: bytes) -> np.ndarray:
    """128 px with transparency to 32 px on white, Lanczos."""
    picture = Image.fromarray(decode_image(data))
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def concept_keys(emoji: Emoji) -> Iterable[str]:
    """Names of concepts: two emoji with a key in common belong together."""
    codes = [code for code in emoji["id"].split("-") if code not in ("FE0F", "200D")]
    yield "code " + next((" ".join(same.split()) for same in SAME if codes[0] in same.split()), codes[0])
    name = emoji["name"].lower()
    if name.startswith("keycap"):
        yield "name keycap"
    if "o’clock" in name or name.endswith("-thirty"):
        yield "name clock"
    words = [word for word in re.findall(r"[\w’-]+", name) if word not in VARIANT_WORDS]
    yield "name " + (" ".join(words) or name)


def cluster(emoji: list[Emoji]) -> list[list[int]]:
    """Indices by concept, each list ascending, lists by first index (union-find over keys and looks)."""
    parent = list(range(len(emoji)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    holders: dict[str, int] = {}
    for index, entry in enumerate(emoji):
        for key in concept_keys(entry):
            parent[find(index)] = find(holders.setdefault(key, index))
    for first, second in look_alikes(emoji):
        parent[find(second)] = find(first)
    clusters: dict[int, list[int]] = defaultdict(list)
    for index in range(len(emoji)):
        clusters[find(index)].append(index)
    return sorted(clusters.values())


def look_alikes(emoji: list[Emoji]) -> list[tuple[int, int]]:
    """Pairs whose pixels differ by less than LOOKS_ALIKE on average, as they are or mirrored."""
    pixels = np.stack([entry["pixels"] for entry in emoji]).astype(np.int16)
    pairs = []
    for index in range(len(emoji) - 1):
        for other in (pixels[index + 1 :], pixels[index + 1 :, :, ::-1]):
            difference = np.abs(other - pixels[index]).mean(axis=(1, 2, 3))
            pairs += [(index, index + 1 + int(offset)) for offset in np.flatnonzero(difference < LOOKS_ALIKE)]
    return pairs


def split(emoji: list[Emoji], clusters: list[list[int]]) -> dict[str, list[Emoji]]:
    """Within each group, whole clusters in hashed order go to validation until its share is reached."""
    hashed = sorted(clusters, key=lambda members: hashlib.sha256(emoji[members[0]]["id"].encode()).digest())
    held_out: set[int] = set()
    for label in range(len(EMOJI_GROUPS)):
        room = VALIDATION_SHARE * sum(entry["label"] == label for entry in emoji) + 0.5
        for members in hashed:
            if emoji[members[0]]["label"] == label and len(members) <= room:
                held_out.update(members)
                room -= len(members)
    fields = ("id", "image", "name", "keywords", "group", "label")
    records = [{field: entry[field] for field in fields} for entry in emoji]
    return {
        "train": [record for index, record in enumerate(records) if index not in held_out],
        "validation": [record for index, record in enumerate(records) if index in held_out],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="folder that fetch.py filled")
    parser.add_argument("--out", type=Path, default=Path("unimodal/data/embedded/emoji"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    emoji = load(arguments.raw)
    clusters = cluster(emoji)
    print(f"{len(emoji)} emoji, {len(clusters)} concepts, largest {sorted(map(len, clusters))[-5:]}")
    for name, records in split(emoji, clusters).items():
        count = write_array_record(arguments.out / f"{name}.array_record", records)
        per_group = [sum(record["label"] == label for record in records) for label in range(len(EMOJI_GROUPS))]
        print(f"{name}: {count} records, per group {per_group}")


if __name__ == "__main__":
    main()
