"""`open_source`: ArrayRecord files, folders, and every error line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from unimodal.data import EMOJI_GROUPS, cached, class_names, column, first, open_source, write_array_record
from unimodal.data.blocks import Labels
from unimodal.data.dividing import hashed
from unimodal.data.schemes import folder
from unimodal.data.values import digest
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
    refused(
        "foldr:x",
        "train",
        r"unknown data source 'foldr:x': expected one of array_record:….*wds:…; did you mean folder:\?",
    )
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
    assert source[0].keys() == {"id", "image", "class", "group", "label"}
    assert [(r["id"], r["class"], r["group"], r["label"]) for r in (source[0], source[5])] == [
        ("validation/b/0.png", "b", "b", 1),
        ("validation/c/2.png", "c", "c", 2),
    ]
    # A class that only one split has is found without reading a picture.
    for split, found in (("train", {"a", "b"}), ("validation", {"b", "c"})):
        part = open_source(f"folder:{tmp_path}", split)
        assert class_names(part) == class_names(first(part, 2)) == ("a", "b", "c")
        assert set(column(part, "class")) == found
    assert source[1]["image"] == (tmp_path / "validation/b/1.png").read_bytes()
    refused(f"folder:{tmp_path}", "test", "no split 'test' in .*: it has train, validation")


def test_files_are_listed_without_a_look_at_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train/a/1.png", "train/a-b/2.x.png", "train/b/.hidden.png", "validation/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with monkeypatch.context() as patched:
        for costly in ("relative_to", "is_file", "is_symlink"):
            patched.setattr(Path, costly, None)
        source: Any = open_source(f"folder:{tmp_path}", "train")
        assert [source.id_at(i) for i in range(len(source))] == ["train/a/1.png", "train/a-b/2.x.png"]
        assert source.class_names("label") == ("a", "a-b", "b")
        np.testing.assert_array_equal(source.keys(), hashed(["train/a/1", "train/a-b/2.x"]))


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


def test_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / "digits" / "train" / str(number) / "a.png", number)
    source = open_source(f"folder:{tmp_path}/digits", "train")
    assert class_names(source) == tuple(str(number) for number in range(12))
    assert [record["class"] for record in (source[i] for i in range(12))] == sorted(map(str, range(12)))  # by path
    assert all(record["label"] == int(record["class"]) for record in (source[i] for i in range(12)))
    assert column(source, "label") == [source[i]["label"] for i in range(12)]
    for name in ("10", "9", "1b"):
        picture(tmp_path / "words" / "train" / name / "a.png", 0)
    assert class_names(open_source(f"folder:{tmp_path}/words", "train")) == ("10", "1b", "9")


def test_names_of_classes_live_with_the_source(tmp_path: Path) -> None:
    emoji = open_source("embedded:emoji", "validation")
    assert class_names(cached(first(emoji, 5), lambda record: record)) == EMOJI_GROUPS
    assert class_names(emoji, "name") == class_names(open_source("embedded:book", "train")) == ()
    assert [EMOJI_GROUPS[label] for label in column(first(emoji, 9), "label")] == column(first(emoji, 9), "group")
    write_array_record(tmp_path / "train.array_record", RECORDS)
    assert class_names(open_source(f"array_record:{tmp_path}", "train")) == ()
    (tmp_path / "classes.txt").write_text("cat\nžá\u2028ba\n", "utf-8")
    assert class_names(open_source(f"array_record:{tmp_path}", "train")) == ("cat", "žá\u2028ba")
    for text in ("cat\ncat\n", "", "cat\n\ndog"):
        (tmp_path / "classes.txt").write_text(text, "utf-8")
        refused(f"array_record:{tmp_path}", "train", "classes.txt should have one class a line, each another one")
    with pytest.raises(UsageError, match=r"record r0 has no 'label': there is blob, id, tags, text"):
        (tmp_path / "classes.txt").unlink()
        column(open_source(f"array_record:{tmp_path}", "train"), "label")


def test_joined_sources_do_not_take_no_label_for_the_last_class(tmp_path: Path) -> None:
    for name, classes in (("a", "cat\ndog\n"), ("b", "ant\ndog\n")):
        (tmp_path / name).mkdir()
        records = ({"id": str(i), "label": label} for i, label in enumerate((0, 1, -1)))
        write_array_record(tmp_path / name / "train.array_record", records)
        (tmp_path / name / "classes.txt").write_text(classes, "utf-8")
    one = f"array_record:{tmp_path}/a"
    uri = f"{one};array_record:{tmp_path}/b"
    both = open_source(uri, "train")
    assert class_names(both) == ("ant", "cat", "dog")
    assert column(both, "label") == [both[i]["label"] for i in range(6)] == [1, 2, -1, 0, 2, -1]
    for source in (one, uri):
        with pytest.raises(UsageError, match="label -1 is below 0, which means no label"):
            Labels().numbers(source, "train")


CSV = 'file_name,text,stars,score,zip\na.png,a cat,5,1,007\n{b},"a dog, wet",-3,2.5,100\n'


@pytest.mark.parametrize("place", ["", "train"])
def test_columns_of_metadata_are_kept_by_name(tmp_path: Path, place: str) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "train" / f"{name}.png", 1)
    prefix = "" if place else "train/"
    text = CSV.format(b="b.png").replace("a.png", f"{prefix}a.png").replace("b.png", f"{prefix}b.png")
    (tmp_path / place / "metadata.csv").write_text("\ufeff" + text, "utf-8")
    source = open_source(f"folder:{tmp_path}", "train")
    picked = [{key: value for key, value in source[i].items() if key != "image"} for i in (0, 1)]
    assert picked == [
        {"id": "train/a.png", "text": "a cat", "stars": 5, "score": 1.0, "zip": "007"},
        {"id": "train/b.png", "text": "a dog, wet", "stars": -3, "score": 2.5, "zip": "100"},
    ]
    assert source[0]["image"] and column(source, "text") == ["a cat", "a dog, wet"]
    with pytest.raises(UsageError, match="have no 'keywords': there is id, score, stars, text, zip"):
        column(source, "keywords")


def test_metadata_of_json_lines_and_labels_of_ones_own(tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("validation", "c")):
        lines = []
        for name in names:
            picture(tmp_path / split / "images" / f"{name}.png", 1)
            lines.append(f'{{"file_name": "images/{name}.png", "label": "{name}!", "tags": [1, "x"]}}')
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", "utf-8")
    source = open_source(f"folder:{tmp_path}", "train")
    # A label of one's own stands, so that images/ is no class.
    assert class_names(source) == () and column(source, "label") == ["a!", "b!"]
    assert source[1].keys() == {"id", "image", "label", "tags"} and source[1]["tags"] == [1, "x"]


def test_types_of_csv_columns_are_those_of_all_splits(tmp_path: Path) -> None:
    for split, value in (("train", "1"), ("validation", "one")):
        picture(tmp_path / split / "a.png", 1)
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\na.png,{value}\n", "utf-8")
    assert [column(open_source(f"folder:{tmp_path}", s), "label") for s in ("train", "validation")] == [["1"], ["one"]]


def test_metadata_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    for index, (name, text, message) in enumerate(
        (
            ("metadata.csv", "text\nx\n", "metadata.csv, line 2: no file_name; the columns are text"),
            ("metadata.csv", CSV.format(b="c.png"), "metadata.csv, line 3: there is no file c.png to read in "),
            ("metadata.csv", CSV.format(b="../a.png"), "metadata.csv, line 3: there is no file ../a.png to read in "),
            ("metadata.csv", CSV.format(b="a.png"), "metadata.csv, line 3: a.png is named twice"),
            ("metadata.csv", "file_name,text\na.png,x\n", "b.png has no row in metadata.csv or metadata.jsonl, but "),
            ("metadata.csv", "file_name,text\na.png,x,y\n", "metadata.csv, line 2: expected 2 values"),
            ("metadata.csv", 'file_name,text\na.png,"x\n', "metadata.csv, line .: not a table of UTF-8 text"),
            ("metadata.csv", "file_name,id\na.png,x\nb.png,y\n", "column 'id' of the metadata in .* rename it"),
            ("metadata.jsonl", "{", "metadata.jsonl, line 1: not JSON"),
            ("metadata.jsonl", "[1]", "metadata.jsonl, line 1: expected an object such as"),
        )
    ):
        root = tmp_path / str(index)
        for file in ("a", "b"):
            picture(root / "train" / f"{file}.png", 1)
        (root / "train" / name).write_text(text, "utf-8")
        refused(f"folder:{root}", "train", message)
    (tmp_path / "8" / "train" / "metadata.csv").write_text(CSV.format(b="b.png"), "utf-8")
    refused(f"folder:{tmp_path}/8", "train", "has both metadata.csv and metadata.jsonl: keep one")
    (tmp_path / "3" / "train" / "metadata.csv").write_bytes(b"file_name,text\na.png,\xff\n")
    refused(f"folder:{tmp_path}/3", "train", "metadata.csv, line .: not a table of UTF-8 text")


def test_files_that_are_not_read_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder._say_once.cache_clear()
    for place in ("train/a.png", "train/b.png", "val/c.png"):
        picture(tmp_path / place, 1)
    for name in ("captions.txt", "labels.csv", "README.md"):
        (tmp_path / "train" / name).write_text("x", "utf-8")
    with caplog.at_level("WARNING"):
        for _ in range(2):
            open_source(f"folder:{tmp_path}", "train")
    assert [record.message for record in caplog.records] == [
        f"3 of 6 files in {tmp_path} are not read, such as train/captions.txt: a folder of this kind has image files, "
        "captions NAME.txt and metadata.csv or metadata.jsonl"
    ]
    refused(f"folder:{tmp_path}", "validation", "no split 'validation' in .*: it has train; rename val to validation")


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


def test_links_that_lead_elsewhere_are_said_and_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder from the net must not read this machine's files; one's own folder of links says so."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("do not tell")
    root = tmp_path / "texts"
    root.mkdir()
    for i in range(20):
        (root / f"{i}.txt").write_text(f"no. {i}")
    (root / "same.txt").symlink_to(root / "3.txt")
    (root / "out.txt").symlink_to(tmp_path / "secret" / "key.txt")
    (root / "more").symlink_to(tmp_path / "secret")
    (root / "round").symlink_to(root)
    (root / "gone.txt").symlink_to(tmp_path / "nothing")

    def texts(uri: str) -> list[str]:
        parts = [open_source(uri, split) for split in ("train", "validation")]
        return sorted(part[i]["text"] for part in parts for i in range(len(part)))

    plain = [f"no. {i}" for i in range(20)]
    assert texts(f"folder:{root}") == sorted([*plain, "no. 3"])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and f"4 links in {root} lead elsewhere and are not read, such as gone.txt → " in said[0]
    (root / "more").unlink()  # else files lie beside class folders
    assert texts(f"folder:{root}?links=follow") == sorted([*plain, "no. 3", "do not tell"])
    with pytest.raises(UsageError, match="links=yes should be follow, or be left out"):
        open_source(f"folder:{root}?links=yes", "train")


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
    refused(
        f"folder:{tmp_path}/lonely", "validation", "split 'validation' of .* is empty: there are no image files in "
    )


def test_a_digest_tells_of_words_and_numbers_that_changed(tmp_path: Path) -> None:
    def of(*lines: str) -> str:
        (tmp_path / "validation.jsonl").write_text("\n".join(lines) + "\n")
        return digest(open_source(f"jsonl:{tmp_path}", "validation"))

    a, b = '{"id": "a", "label": 1, "tags": ["x"]}', '{"id": "b", "label": 2, "tags": []}'
    changed = [(a,), (a, b), (b, a), (a, b.replace("2", "1")), (a, b.replace("[]", '["y"]')), (a, b.replace("b", "c"))]
    assert len({of(*lines) for lines in changed}) == len(changed) and of(a, b) == of(a, b)


def test_a_digest_of_a_folder_reads_one_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one/a", "one/b", "two/c"):
        path = tmp_path / "validation" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(80, np.float32), 8000)
    read: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), real(path))[1])
    before = digest(open_source(f"folder:{tmp_path}", "validation"))
    assert len(read) == 1
    (tmp_path / "validation" / "two" / "c.wav").rename(tmp_path / "validation" / "one" / "c.wav")
    assert digest(open_source(f"folder:{tmp_path}", "validation")) != before


def test_a_caption_in_a_table_may_be_long(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "train" / f"{name}.png", 1)
    (tmp_path / "metadata.csv").write_text(f"file_name,text\ntrain/a.png,{'x' * 200_000}\ntrain/b.png,y\n", "utf-8")
    assert [len(text) for text in column(open_source(f"folder:{tmp_path}", "train"), "text")] == [200_000, 1]


def test_a_number_beyond_the_named_classes_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, classes in (("a", "cat\ndog\n"), ("b", "ant\ncat\ndog\n")):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            records = ({"id": f"no. {i}", "label": i} for i in range(3))
            write_array_record(tmp_path / name / f"{split}.array_record", records)
        (tmp_path / name / "classes.txt").write_text(classes, "utf-8")
    one, both = f"array_record:{tmp_path}/a", f"array_record:{tmp_path}/a;array_record:{tmp_path}/b"
    with pytest.raises(UsageError, match="record 2 of train: label 2 is not among the 2 classes that the source names"):
        Labels().names(one)
    with pytest.raises(UsageError, match="label 2 is not among the 2 classes that its source names"):
        Labels().names(both)


def test_numbers_among_words_are_classes_of_their_own(tmp_path: Path) -> None:
    values = [1, 2, "other", 1, "2", "other"]
    for split in ("train", "validation"):
        lines = [json.dumps({"id": f"no. {i}", "text": "x", "label": value}) for i, value in enumerate(values)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), "utf-8")
    uri, labels = f"jsonl:{tmp_path}", Labels()
    source = open_source(uri, "train")
    assert labels.names(uri) == ("1", "2", "other")
    assert labels.numbers(uri, "validation").tolist() == [0, 1, 2, 0, 1, 2]
    assert [labels.number(uri, source[i]) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(UsageError, match="record 'no. 7': column 'label' holds no class, but 0.5"):
        labels.number(uri, {"id": "no. 7", "label": 0.5})
