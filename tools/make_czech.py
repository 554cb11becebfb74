"""Makes ArrayRecord files of spoken Czech with transcripts: lines of a game, by several actors, some distorted on purpose.

    python tools/make_czech.py OUT [--train 100] [--raw raw/]

OUT gets train.array_record and validation.array_record. One line in ten is validation, chosen by a hash of its name; with
--train only so many of the others are kept, spread over all. Fetches the Debian packages fillets-ng-data (transcripts) and
fillets-ng-data-cs (sounds), which are under the GPL, version 2: for one's own use. Needs `apt-get` and `dpkg-deb`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fetch import fetch_debian

from unimodal.data.audio import sound_rate
from unimodal.data.sources import write_array_record

TRANSCRIPTS, SOUNDS, FOLDER = "fillets-ng-data", "fillets-ng-data-cs", Path("usr/share/games/fillets-ng")
LINE = re.compile(r'dialogId\("(?P<id>[^"]+)".*\)\s*dialogStr\("(?P<text>(?:[^"\\]|\\.)*)"\)')


def records(transcripts: Path, sounds: Path) -> Iterator[dict[str, Any]]:
    """id, audio (Ogg bytes), rate and text of every line that has both a sound and words."""
    for script in sorted((transcripts / FOLDER / "script").glob("*/dialogs_cs.lua")):
        level = script.parent.name
        for match in LINE.finditer(script.read_text(encoding="utf-8")):
            path = sounds / FOLDER / "sound" / level / "cs" / f"{match['id']}.ogg"
            text = match["text"].replace("\\", "").strip()
            if path.is_file() and any(map(str.isalpha, text)):
                audio, name = path.read_bytes(), f"{level}/{match['id']}"
                yield {"id": name, "audio": audio, "rate": sound_rate(audio, name), "text": text}


def is_validation(name: str) -> bool:
    """The same for a line whatever others there are."""
    return hashlib.sha256(name.encode()).digest()[0] < 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the files")
    parser.add_argument("--train", type=int, help="how many lines to train on (default: all)")
    parser.add_argument("--raw", type=Path, help="keep the packages here (default: nowhere)")
    given = parser.parse_args()
    if given.train is not None and given.train < 1:
        parser.error(f"--train must be at least 1, but is {given.train}")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        raw = given.raw or Path(scratch)
        raw.mkdir(parents=True, exist_ok=True)
        lines = list(records(fetch_debian(TRANSCRIPTS, raw), fetch_debian(SOUNDS, raw)))
    train = [line for line in lines if not is_validation(line["id"])]
    count = len(train) if given.train is None else given.train
    if count > len(train):
        parser.error(f"--train must be at most {len(train)}, but is {count}")
    chosen = {"train": [train[i * len(train) // count] for i in range(count)]}
    chosen["validation"] = [line for line in lines if is_validation(line["id"])]
    for split, kept in chosen.items():
        path = given.out / f"{split}.array_record"
        print(f"{path}: {write_array_record(path, kept)} lines")


if __name__ == "__main__":
    main()
