"""The embedded sets: sizes, fields, licences, and that nothing is on both sides of a split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import unimodal.data
from unimodal.data import EMOJI_GROUPS, ByteEncoder, Source, decode_audio, decode_image, open_source, spell

FOLDER = Path(unimodal.data.__file__).parent / "embedded"
SETS = ("emoji", "speech", "book")


def records(name: str, split: str) -> list[dict]:
    source: Source = open_source(f"embedded:{name}", split)
    return [source[index] for index in range(len(source))]


def test_all_of_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 4_200_000


@pytest.mark.parametrize("name", SETS)
def test_origin_and_licence_lie_beside(name: str) -> None:
    readme = (FOLDER / name / "README.md").read_text("utf-8")
    assert "Origin" in readme and "How made" in readme
    assert len((FOLDER / name / "LICENSE").read_text("utf-8")) > 200
    for split in ("train", "validation"):
        assert f"| {len(open_source(f'embedded:{name}', split)):,} |" in readme


@pytest.mark.parametrize("name", SETS)
def test_ids_are_unique_and_splits_disjoint(name: str) -> None:
    train, validation = ([record["id"] for record in records(name, split)] for split in ("train", "validation"))
    assert len(set(train)) == len(train) and len(set(validation)) == len(validation)
    assert not set(train) & set(validation)
    assert 0.08 < len(validation) / (len(train) + len(validation)) < 0.14


def test_emoji_records() -> None:
    for split in ("train", "validation"):
        found = records("emoji", split)
        assert {record["label"] for record in found} == set(range(len(EMOJI_GROUPS)))
        for record in found:
            assert set(record) == {"id", "image", "name", "keywords", "group", "label"}
            assert EMOJI_GROUPS[record["label"]] == record["group"]
            assert record["name"] and all(isinstance(word, str) for word in record["keywords"])
            assert not any(tone in record["id"] for tone in ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"))
            image = decode_image(record["image"])
            assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and image.std() > 5


def test_no_emoji_concept_is_on_both_sides() -> None:
    train, validation = (records("emoji", split) for split in ("train", "validation"))
    first_code = [{record["id"].split("-")[0] for record in split} for split in (train, validation)]
    assert not first_code[0] & first_code[1]
    gender = {"man", "woman", "person", "men", "women", "people", "boy", "girl", "child", "male", "female"}
    colour = {"red", "orange", "yellow", "green", "blue", "purple", "black", "white"}

    def concepts(split: list[dict]) -> set[frozenset[str]]:
        bare = (frozenset(record["name"].lower().split()) - gender - colour for record in split)
        return {name for name in bare if name}

    assert not concepts(train) & concepts(validation)
    pixels = [
        np.stack([decode_image(record["image"]) for record in split]).astype(np.int16) for split in (train, validation)
    ]
    for picture in pixels[1]:
        for view in (picture, picture[:, ::-1]):
            nearest = np.abs(pixels[0] - view).mean(axis=(1, 2, 3)).min()
            assert nearest >= 5.9


def test_speech_records() -> None:
    seconds = 0.0
    for split in ("train", "validation"):
        for record in records("speech", split):
            assert set(record) == {"id", "audio", "rate", "text", "phones", "phrases"} and record["rate"] == 16_000
            assert record["text"] and "+" not in record["text"]
            samples = decode_audio(record["audio"], 16_000)
            assert samples.dtype == np.float32 and 0.01 < samples.std() < 0.3
            # Russian is read at 8 to 20 letters a second: sound and transcript belong together.
            assert 7 < len(record["text"]) / (len(samples) / 16_000) < 22
            seconds += len(samples) / 16_000
    assert 11 * 60 < seconds < 13 * 60


def test_speech_marks() -> None:
    counts = {"phones": 0, "phrases": 0}
    for split in ("train", "validation"):
        for record in records("speech", split):
            phones, phrases = record["phones"], record["phrases"]
            assert phones[0][0] == 0 and all(a[1] == b[0] for a, b in zip(phones, phones[1:], strict=False))
            assert all(start < end for start, end, _ in phones + phrases)
            # Together the phrases are the whole text, but for its signs, and no two overlap.
            assert spell(" ".join(text for *_, text in phrases)) == spell(record["text"])
            assert all(a[1] <= b[0] for a, b in zip(phrases, phrases[1:], strict=False))
            for start, end, text in phrases:
                heard = sum(start <= (a + b) / 2 <= end for a, b, phone in phones if phone != "pau")
                assert abs(heard - sum(c.isalpha() for c in text)) <= 4 + heard / 3, (record["id"], text)
            counts["phones"] += len(phones)
            counts["phrases"] += len(phrases)
    assert counts == {"phones": 6831, "phrases": 340}


def test_book_records() -> None:
    train, validation = (records("book", split) for split in ("train", "validation"))
    assert train[0]["title"] == "Loomings." and train[0]["text"].startswith("Call me Ishmael.")
    assert [record["id"] for record in validation] == [f"chapter-{number}" for number in range(10, 136, 10)]
    assert len(train) + len(validation) == 136
    for record in train + validation:
        assert set(record) == {"id", "title", "text"}
        assert not any(word in record["text"] for word in ("Gutenberg", "stdlib", "eBook", "\r"))
        assert ByteEncoder().decode(ByteEncoder().encode(record["text"])) == record["text"]
