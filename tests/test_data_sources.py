"""`open_source`: ArrayRecord files, folders, and every error line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from unimodal.data import open_source, write_array_record
from unimodal.errors import UsageError

RECORDS: list[dict[str, Any]] = [
    {"id": f"r{i}", "text": "é" * i, "blob": bytes([i]), "tags": ["a", i]} for i in range(7)
]


def refused(uri: str, split: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_source(uri, split)
    assert "\n" not in str(caught.value)


def test_array_record_round_trip(tmp_path: Path) -> None:
    assert write_array_record(tmp_path / "train.array_record", RECORDS) == 7
    source = open_source(f"array_record:{tmp_path}", "train")
    assert len(source) == 7
    assert [source[i] for i in (3, 0, 6)] == [RECORDS[i] for i in (3, 0, 6)]
    assert source[-1] == RECORDS[6]
    with pytest.raises(IndexError):
        source[7]
    assert [path.name for path in tmp_path.iterdir()] == ["train.array_record"]
    write_array_record(tmp_path / "again.array_record", RECORDS)
    assert (tmp_path / "again.array_record").read_bytes() == (tmp_path / "train.array_record").read_bytes()


def test_array_record_shards(tmp_path: Path) -> None:
    for shard, part in enumerate((RECORDS[:3], RECORDS[3:])):
        write_array_record(tmp_path / f"train-0000{shard}-of-00002.array_record", part)
    source = open_source(f"array_record:{tmp_path}", "train")
    assert [source[i]["id"] for i in range(len(source))] == [record["id"] for record in RECORDS]
    (tmp_path / "train-00001-of-00002.array_record").unlink()
    refused(f"array_record:{tmp_path}", "train", "lacks shard 1 of split 'train': found 1 files")
    write_array_record(tmp_path / "train.array_record", RECORDS)
    refused(f"array_record:{tmp_path}", "train", "mixes different shardings of 'train'")


def test_writing_refuses_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for records, message in (
        ([], "no records to write"),
        ([{"text": "x"}], "every record needs a string under 'id', found None"),
        ([{"id": "a"}, {"id": "a"}], "record id 'a' is used twice"),
        ([{"id": "a", "x": np.zeros(2)}], "record 'a' cannot be written as msgpack"),
    ):
        with pytest.raises(UsageError, match=message):
            write_array_record(tmp_path / "train.array_record", records)
    assert not list(tmp_path.iterdir())


def test_unknown_sources_and_splits(tmp_path: Path) -> None:
    refused("foldr:x", "train", r"unknown data source 'foldr:x': expected one of embedded:….*; did you mean folder:\?")
    refused("emoji", "train", "unknown data source 'emoji'")
    refused("folder:", "train", "names nothing after the colon")
    refused("embedded:emojis", "train", "no embedded data 'emojis': there is emoji, speech, book")
    refused("embedded:emoji", "test", "no split 'test' in .*emoji: it has train, validation")
    refused(f"array_record:{tmp_path}/none", "train", "no directory .*none: expected one with train.array_record in it")
    refused(f"array_record:{tmp_path}", "train", "no .array_record files in .*: expected train.array_record or")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "train.array_record"
    path.write_bytes(b"")
    refused(f"array_record:{tmp_path}", "train", "train.array_record is empty")
    path.write_bytes(b"this is no array record" * 9)
    refused(f"array_record:{tmp_path}", "train", "train.array_record is not a whole ArrayRecord file")
    write_array_record(path, RECORDS)
    path.write_bytes(path.read_bytes()[:70_000])
    refused(f"array_record:{tmp_path}", "train", "is not a whole ArrayRecord file")


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value, 0, 0)).save(path)


def test_folder_of_classes_with_splits(tmp_path: Path) -> None:
    for split, classes in (("train", "ab"), ("validation", "bc")):
        for name in classes:
            for index in range(3):
                picture(tmp_path / split / name / f"{index}.png", index)
    source = open_source(f"folder:{tmp_path}", "validation")
    assert len(source) == 6
    assert source[0].keys() == {"id", "image", "group", "label"}
    assert [(r["id"], r["group"], r["label"]) for r in (source[0], source[5])] == [
        ("validation/b/0.png", "b", 1),
        ("validation/c/2.png", "c", 2),
    ]
    assert source[1]["image"] == (tmp_path / "validation/b/1.png").read_bytes()
    refused(f"folder:{tmp_path}", "test", "no split 'test' in .*: it has train, validation")


def test_flat_folder_with_captions_is_split_by_hash(tmp_path: Path) -> None:
    for index in range(60):
        picture(tmp_path / f"{index}.png", index)
        (tmp_path / f"{index}.txt").write_text(f"picture {index}\n", "utf-8")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    parts = {split: open_source(f"folder:{tmp_path}", split) for split in ("train", "validation")}
    names = {split: {part[i]["id"] for i in range(len(part))} for split, part in parts.items()}
    assert names["train"] | names["validation"] == {f"{index}.png" for index in range(60)}
    assert not names["train"] & names["validation"] and 1 <= len(names["validation"]) <= 15
    record = parts["train"][0]
    assert record["text"] == f"picture {record['id'].removesuffix('.png')}" and "label" not in record
    for index in range(60, 80):  # others come: nobody moves
        picture(tmp_path / f"{index}.png", 0)
        (tmp_path / f"{index}.txt").write_text("x", "utf-8")
    later = open_source(f"folder:{tmp_path}", "validation")
    assert names["validation"] <= {later[i]["id"] for i in range(len(later))}
    (tmp_path / "7.txt").unlink()
    refused(f"folder:{tmp_path}", "train", r"7.png has no caption 7.txt, but other files in .* have one")


def test_folders_of_sound_and_text(tmp_path: Path) -> None:
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(80), 8000, format="WAV")
    for name in ("train", "validation"):
        (tmp_path / "sound" / name).mkdir(parents=True)
        (tmp_path / "sound" / name / "a.wav").write_bytes(sound.getvalue())
        (tmp_path / "text" / name).mkdir(parents=True)
        (tmp_path / "text" / name / "a.txt").write_text("Ahoy é", "utf-8")
    assert open_source(f"folder:{tmp_path}/sound", "train")[0] == {
        "id": "train/a.wav",
        "audio": sound.getvalue(),
        "rate": 8000,
    }
    assert open_source(f"folder:{tmp_path}/text", "train")[0] == {"id": "train/a.txt", "text": "Ahoy é"}
    (tmp_path / "text" / "train" / "a.txt").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        open_source(f"folder:{tmp_path}/text", "train")[0]
    (tmp_path / "sound" / "train" / "a.wav").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not a sound"):
        open_source(f"folder:{tmp_path}/sound", "train")[0]


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    refused(f"folder:{tmp_path}/none", "train", "no folder .*none: expected one with images")
    refused(f"folder:{tmp_path}", "train", "no data in .*: expected files ending in .png")
    refused(f"folder:{tmp_path}", "test", "no split 'test' in .*: it has train, validation")
    picture(tmp_path / "mixed" / "a.png", 0)
    (tmp_path / "mixed" / "b.wav").write_bytes(b"x")
    refused(f"folder:{tmp_path}/mixed", "train", "mixes image and audio files: one folder holds one kind")
    picture(tmp_path / "loose" / "cat" / "a.png", 0)
    picture(tmp_path / "loose" / "b.png", 0)
    refused(f"folder:{tmp_path}/loose", "train", "b.png lies beside class folders")
    picture(tmp_path / "lonely" / "train" / "a.png", 0)
    (tmp_path / "lonely" / "validation").mkdir()
    refused(f"folder:{tmp_path}/lonely", "validation", "split 'validation' of .* is empty: make ")
