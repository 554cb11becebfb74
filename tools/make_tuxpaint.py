"""Makes ArrayRecord files of Tux Paint's stamps: pictures with captions and spoken captions in one language (GPL-2).

    python tools/make_tuxpaint.py OUT [--language fr] [--also es,ro,ca] [--spoken] [--raw raw/]

OUT gets train.array_record and validation.array_record. A record is a stamp: `image` (PNG), `text` in the language, `english`,
and `audio` (Ogg) with what is said, where the language has a recording (fr 767, ru 760, ro 760, ca 757, bg 757, es 741 stamps).
`--language en` takes the English text and recordings. Of stamps with one caption the first is kept, and one English caption in ten
is for validation, by its hash. With `--also`, training has the stamps in these languages, too, under ids with the language behind;
validation stays in the one. Fetches the Debian package tuxpaint-stamps-default; needs `apt-get` and `dpkg-deb`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fetch import fetch_debian
from fetch_text import split_of, write_splits

PACKAGE, FOLDER = "tuxpaint-stamps-default", Path("usr/share/tuxpaint/stamps")


def captions(path: Path) -> dict[str, str]:
    """Language → caption. The first line is English, the others are `fr.utf8=…`."""
    first, *others = path.read_text(encoding="utf-8").splitlines()
    found = {"en": first.strip()}
    for line in others:
        code, equals, text = line.partition(".utf8=")
        if equals and text.strip():
            found[code.strip()] = text.strip()
    return found


def records(folder: Path, language: str) -> Iterator[dict[str, Any]]:
    """The stamps that are pictures and have a caption in the language."""
    seen: set[str] = set()
    for picture in sorted(folder.rglob("*.png")):
        beside = picture.with_suffix(".txt")
        if picture.stem.endswith("_mirror") or not beside.is_file():
            continue
        said = captions(beside)
        if language not in said or said[language].casefold() in seen:
            continue
        seen.add(said[language].casefold())
        spoken = picture.with_name(f"{picture.stem}_desc{'' if language == 'en' else '_' + language}.ogg")
        yield {
            "id": picture.relative_to(folder).with_suffix("").as_posix(),
            "image": picture.read_bytes(),
            "text": said[language],
            "english": said["en"],
            **({"audio": spoken.read_bytes()} if spoken.is_file() else {}),
            "split": split_of(said["en"].casefold()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the files")
    parser.add_argument("--language", default="fr", help="of captions and recordings, as Tux Paint calls it")
    parser.add_argument("--also", default="", help="more languages for training, with commas between them")
    parser.add_argument("--spoken", action="store_true", help="only stamps with a recording")
    parser.add_argument("--raw", type=Path, help="keep the package here (default: nowhere)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        raw = given.raw or Path(scratch)
        raw.mkdir(parents=True, exist_ok=True)
        folder, found = fetch_debian(PACKAGE, raw) / FOLDER, []
        for language in dict.fromkeys((given.language, *filter(None, given.also.split(",")))):
            stamps = [one for one in records(folder, language) if "audio" in one or not given.spoken]
            if not stamps:
                parser.error(f"no stamp has a caption in {language!r}")
            if language != given.language:
                stamps = [{**one, "id": f"{one['id']}.{language}"} for one in stamps if one["split"] == "train"]
            found += stamps
    write_splits(found, given.out)


if __name__ == "__main__":
    main()
