"""Tables, shards and joined sources: every scheme gives the records that were written, and splits that never leak."""

from __future__ import annotations

import collections
import csv
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from unimodal.data import (
    ByteEncoder,
    Dataset,
    cached,
    class_names,
    column,
    first,
    open_source,
    schemes,
    text_windows,
    train_batches,
    write_array_record,
)
from unimodal.data.blocks import Labels, Texts
from unimodal.data.dividing import Picked, mixed
from unimodal.data.joined import joined
from unimodal.data.line_index import cache_folder, line_index
from unimodal.data.schemes import wds
from unimodal.data.values import evenly
from unimodal.errors import RecordError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


ROWS: list[dict[str, Any]] = [
    {"file_name": f"pictures/{i}.png", "text": f'said "{i}",\nand é', "label": "ab"[i % 2], "who": f"s{i // 3}"}
    for i in range(30)
]


def pictures(folder: Path) -> None:
    (folder / "pictures").mkdir(parents=True)
    for i in range(len(ROWS)):
        (folder / "pictures" / f"{i}.png").write_bytes(png(i))


def written(scheme: str, folder: Path, rows: list[dict[str, Any]]) -> str:
    """The rows as one file of a scheme, and its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"table.{scheme}"
    if scheme == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    elif scheme == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif scheme == "tsv":
        lines = ["\t".join(rows[0]), *("\t".join(row.values()).replace("\n", " ") for row in rows)]
        path.write_text("\n".join(lines), "utf-8")
    elif scheme == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return f"{scheme}:{path}"


def everything(uri: str) -> dict[str, list[dict[str, Any]]]:
    parts = {split: open_source(uri, split) for split in ("train", "validation")}
    return {split: [part[i] for i in range(len(part))] for split, part in parts.items()}


@pytest.mark.parametrize("scheme", ["jsonl", "csv", "tsv", "parquet"])
def test_tables_give_their_rows_with_files_opened(tmp_path: Path, scheme: str) -> None:
    pictures(tmp_path)
    uri = written(scheme, tmp_path, ROWS)
    found = everything(uri)
    records = {record["text"]: record for part in found.values() for record in part}
    assert len(records) == len(found["train"]) + len(found["validation"]) == len(ROWS)
    assert len(found["validation"]) >= 1 and len(found["train"]) >= 20
    for i, row in enumerate(ROWS):
        record = records[row["text"] if scheme != "tsv" else row["text"].replace("\n", " ")]
        assert record["image"] == png(i) and record["label"] == row["label"]
        assert record["id"] == f"table.{scheme}:{i + 1}" and record["file_name"] == row["file_name"]
    part = open_source(uri, "train")
    assert column(part, "label") == [record["label"] for record in found["train"]]
    assert column(part, "id") == [record["id"] for record in found["train"]]
    with pytest.raises(UsageError, match="no column 'age'|has no 'age'"):
        column(part, "age")
    copy = pickle.loads(pickle.dumps(part))  # as worker processes get it
    assert copy[3] == part[3]


def test_wds_shards_are_read_at_any_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(2):
        with tarfile.open(tmp_path / f"s-{shard:03}.tar", "w") as tar:
            for i in range(10 * shard, 10 * shard + 10):
                for ending, data in (
                    ("png", png(i)),
                    ("txt", f"é {i}\n".encode()),
                    ("cls", b"%d" % (i % 3)),
                    ("json", b'{"who": "me", "text": "hidden"}'),
                    ("left.jpg", b"left"),
                ):
                    member = tarfile.TarInfo(f"./sub/{i:04}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    for uri in (f"wds:{tmp_path}/s-*.tar", f"wds:{tmp_path}/s-{{000..001}}.tar", f"webdataset:{tmp_path}"):
        found = everything(uri)
        records = {record["id"]: record for part in found.values() for record in part}
        assert len(records) == 20 and found["validation"]
        for i in range(20):
            assert records[f"sub/{i:04}"] == {
                "id": f"sub/{i:04}",
                "image": png(i),
                "text": f"é {i}",
                "label": i % 3,
                "who": "me",
                "left": b"left",
            }
    assert len(list(cache_folder().iterdir())) == 2  # one index for each shard, found again
    source, read, real = open_source(f"wds:{tmp_path}/s-000.tar", "train"), [], wds.read_at
    monkeypatch.setattr(wds, "read_at", lambda path, start, size: read.append(size) or real(path, start, size))
    names = [source.id_at(i) for i in range(len(source))]  # pyright: ignore[reportAttributeAccessIssue]
    assert column(source, "label") == [int(name[-4:]) % 3 for name in names] and max(read) < 50  # no picture is read
    assert column(source, "who") == ["me"] * len(source)
    with pytest.raises(UsageError, match="has no 'rate': there is id, image, label, left, text, who"):
        column(source, "rate")
    (tmp_path / "s-000.tar").write_bytes(b"x" * 600)
    with pytest.raises(UsageError, match="is not a tar file that can be read at any place"):
        open_source(f"wds:{tmp_path}/s-000.tar", "train")


def test_hugging_faces_tables(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(i), "path": None}, "label": i % 2} for i in range(9)]
    told = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["no", "yes"]}}}}).encode()}
    table = pa.Table.from_pylist(rows).replace_schema_metadata(told)
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        parquet.write_table(table, tmp_path / "data" / f"{name}.parquet")
    uri = f"parquet:{tmp_path}/data?validation=test"
    train, valid = (open_source(uri, split) for split in ("train", "validation"))
    assert (len(train), len(valid)) == (18, 9) and class_names(train) == ("no", "yes")
    assert train[10]["image"] == png(1) and train[10]["id"] == "train-00001-of-00002.parquet:2"
    with pytest.raises(UsageError, match="hf: needs the package datasets|cannot be loaded"):
        open_source(f"hf:{tmp_path}/none", "train")


def test_a_set_of_the_library_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(20)], "label": [i % 2 for i in range(20)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    found = everything(f"hf:{tmp_path}/set")
    assert sorted(record["image"] for part in found.values() for record in part) == sorted(png(i) for i in range(20))
    assert class_names(open_source(f"hf:{tmp_path}/set", "train")) == ("no", "yes")


@pytest.mark.parametrize("name", ["captions.csv", "transcripts.tsv", "metadata.tsv"])
def test_tables_beside_files_go_by_several_names(tmp_path: Path, name: str) -> None:
    pictures(tmp_path)
    gap = "\t" if name.endswith("tsv") else ","
    lines = [f"{i}.png{gap}it is {i}" for i in range(30)]
    (tmp_path / "pictures" / name).write_text("\n".join([f"path{gap}sentence", *lines]), "utf-8")
    found = everything(f"folder:{tmp_path}/pictures")
    assert {r["id"]: r["sentence"] for part in found.values() for r in part} == {
        f"{i}.png": f"it is {i}" for i in range(30)
    }


def test_a_split_is_a_pure_function_of_keys(tmp_path: Path) -> None:
    rows = [
        {"text": f"row {i}", "who": f"s{i % 40}", "label": "rare" if i % 50 == 0 else "ab"[i % 2]} for i in range(1000)
    ]
    uri = written("jsonl", tmp_path, rows)

    def texts(options: str, split: str, source: str = uri) -> set[str]:
        return set(column(open_source(source + options, split), "text"))

    held = texts("?validation=0.2", "validation")
    assert held | texts("?validation=0.2", "train") == {row["text"] for row in rows}
    assert not held & texts("?validation=0.2", "train") and 150 < len(held) < 250
    assert texts("?validation=0.1", "validation") < held  # a larger share takes more, and lets nobody go
    # Whatever the order and whoever comes along, a row stays where it is; equal rows are on one side.
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(1000)]
    more = written("jsonl", tmp_path / "more", [*shuffled, *({"text": f"new {i}"} for i in range(500)), *rows[:300]])
    assert {t for t in texts("?validation=0.2", "validation", more) if t.startswith("row")} == held
    assert not texts("?validation=0.2", "validation", more) & texts("?validation=0.2", "train", more)
    three = [texts("?validation=0.2&test=0.3", split) for split in ("train", "validation", "test")]
    assert three[1] == held and sum(map(len, three)) == 1000 and 250 < len(three[2]) < 350
    # by: all of a speaker on one side. stratify: the share of every class.
    who = [set(column(open_source(uri + "?by=who", split), "who")) for split in ("train", "validation")]
    assert not who[0] & who[1] and who[1]
    part = open_source(uri + "?validation=0.2&stratify=label", "validation")
    assert collections.Counter(column(part, "label")) == {"rare": 4, "a": 96, "b": 100}
    words = mixed(np.arange(100_000, dtype=np.uint32))
    counts = np.bincount((words >> np.uint64(60)).astype(int))  # keys are even: each sixteenth within 5 σ of its mean
    assert np.abs(counts - 6250).max() < 5 * 6250**0.5


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    uri = written("jsonl", tmp_path, [{"text": str(i)} for i in range(50)])
    train, valid = (open_source(uri + "?validation=0.2", split) for split in ("train", "validation"))
    stream = grain.MapDataset.source(train).shuffle(seed=3).repeat(4)
    seen = collections.Counter(stream[i]["text"] for i in range(len(stream)))
    assert set(seen.values()) == {4} and set(seen) | set(column(valid, "text")) == {str(i) for i in range(50)}
    assert not set(seen) & set(column(valid, "text"))


def test_several_sources_are_one(tmp_path: Path) -> None:
    for name, classes in (("one", "ab"), ("two", "bc")):
        for split in ("train", "validation"):
            for label in classes:
                (tmp_path / name / split / label).mkdir(parents=True)
                (tmp_path / name / split / label / "x.png").write_bytes(png(ord(label)))
    uri = f"folder:{tmp_path}/one; folder:{tmp_path}/two"
    source = open_source(uri, "train")
    assert len(source) == 4 and class_names(source) == ("a", "b", "c")
    assert [record["label"] for record in map(source.__getitem__, range(4))] == column(source, "label") == [0, 1, 1, 2]
    assert source[3]["id"] == column(source, "id")[3] == f"folder:{tmp_path}/two/train/c/x.png"
    with pytest.raises(UsageError, match="two has no .weight=, but other sources have one: weigh all, or none"):
        open_source(uri.replace(";", "?weight=2;"), "train")
    with pytest.raises(UsageError, match="joins folder:.*one with itself"):
        open_source(f"folder:{tmp_path}/one;folder:{tmp_path}/one", "train")


def test_joined_sources_agree_on_classes_in_any_column(tmp_path: Path) -> None:
    for name, classes in (("one", ["cat", "dog"]), ("two", ["dog", "ant"])):
        told = {b"huggingface": json.dumps({"info": {"features": {"category": {"names": classes}}}}).encode()}
        table = pa.Table.from_pylist([{"category": i % 2} for i in range(4)]).replace_schema_metadata(told)
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            parquet.write_table(table, tmp_path / name / f"{split}.parquet")
    uri = f"parquet:{tmp_path}/one;parquet:{tmp_path}/two"
    source, labels = open_source(uri, "train"), Labels()
    assert labels.names(uri) == ("ant", "cat", "dog")
    expected = [1, 2, 1, 2, 2, 0, 2, 0]
    assert labels.numbers(uri, "train").tolist() == column(source, "category") == expected
    assert [labels.number(uri, source[i]) for i in range(8)] == expected


def test_a_folder_with_classes_is_joined_with_one_without_where_nobody_reads_classes(tmp_path: Path) -> None:
    for place in ("one/a/1.png", "one/b/2.png", "two/3.png", "two/4.png"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(int(path.stem)))
    uri = f"folder:{tmp_path}/one?validation=0.5;folder:{tmp_path}/two?validation=0.5"
    source = open_source(uri, "train")
    assert all(source[i]["image"] for i in range(len(source)))
    with pytest.raises(UsageError, match="two does not name its classes, as other sources do|have no 'label'"):
        Labels(column="label").names(uri)


class Counting:
    """Numbered records of three classes, and how often it is asked for what."""

    def __init__(self, names: tuple[str, ...] = ("a", "b", "c")):
        self.names, self.asked = names, collections.Counter[Any]()

    def __len__(self) -> int:
        self.asked["length"] += 1
        return 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked[index] += 1
        return {"id": str(index), "label": index % 3}

    def class_names(self, _column: str) -> tuple[str, ...]:
        self.asked["names"] += 1
        return self.names


def test_a_column_of_some_records_reads_no_others() -> None:
    for some in (
        lambda whole: Picked(whole, np.array([3, 7, 11])),
        lambda whole: Picked(Picked(whole, np.array([1, 3, 5, 7, 9, 11])), np.array([1, 3, 5])),
    ):
        source = Counting()
        assert column(some(source), "label") == [0, 1, 2] and set(source.asked) == {3, 7, 11}
    source = Counting()
    assert column(first(source, 2), "id") == ["0", "1"] and {0, 1} == set(source.asked) - {"length"}
    assert column(evenly(source, 3), "id") == ["0", "10", "20"]


def test_joined_sources_are_asked_once_how_long_they_are_and_for_their_classes() -> None:
    parts = Counting(("a", "b", "c")), Counting(("c", "b", "d"))
    source = joined(["one", "two"], parts, [None, None])
    assert [source[i]["label"] for i in (0, 1, 2, 30, 31, 32)] == [0, 1, 2, 2, 1, 3]
    before = [(part.asked["names"], part.asked["length"]) for part in parts]
    assert [source[i]["label"] for i in range(33, 50)] == [2, 1, 3] * 5 + [2, 1]
    after = [(part.asked["names"], part.asked["length"] - asked) for part, asked in zip(parts, (0, 17), strict=True)]
    assert before == after  # but for one length a record, of the source that it is in


def test_joined_sources_have_their_shares(tmp_path: Path) -> None:
    big = written("jsonl", tmp_path / "big", [{"text": f"big {i}"} for i in range(90)])
    small = written("jsonl", tmp_path / "small", [{"text": f"tiny {i}"} for i in range(12)])
    uri = f"{big}?weight=1&validation=0.1;{small}?weight=3&validation=0.1"
    source = open_source(uri, "train")
    sizes = [len(open_source(one + "?validation=0.1", "train")) for one in (big, small)]
    whole = Dataset(cached(source, lambda record: record), lambda record, rng: {"n": np.int32(0)})
    batches = train_batches(whole, batch_size=40, seed=0, prefetch=False)
    ids = [str(name) for _ in range(10) for name in next(batches)["id"]]
    for i in range(0, 400, 40):  # at every moment, to within one for each part
        assert abs(sum("/small/" in name for name in ids[: i + 40]) - 0.75 * (i + 40)) <= 2
    counts = collections.Counter(ids)
    assert {n for name, n in counts.items() if "/big/" in name} <= {1, 2} and sum(counts.values()) == 400
    tiny = [n for name, n in counts.items() if "/small/" in name]
    assert len(tiny) == sizes[1] and max(tiny) - min(tiny) <= 1  # whole epochs, each by itself
    windows = text_windows(Texts().documents(source), ByteEncoder().encode, 4, random=True)
    assert [weight for _, weight in windows.source.parts] == [1, 3]  # pyright: ignore[reportAttributeAccessIssue]
    assert sum(count for count, _ in windows.source.parts) == len(windows)  # pyright: ignore
    with pytest.raises(UsageError, match="weights of joined sources cannot be kept in its first records"):
        first(source, 2)
    unweighed = open_source(uri.replace("weight=1&", "").replace("weight=3&", ""), "train")
    stream = Dataset(unweighed, lambda record, rng: {}).stream(0)
    assert len({stream[i]["id"] for i in range(sum(sizes))}) == sum(sizes)  # one epoch of all together


def test_an_index_is_made_once_and_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimodal.data.line_index.CHUNK", 37)  # so that records lie across chunks
    rng = np.random.default_rng(0)
    rows = [{"text": "é\n\"',x" * int(n), "n": str(i)} for i, n in enumerate(rng.integers(0, 12, 100))]
    for scheme in ("jsonl", "csv"):
        uri = written(scheme, tmp_path, rows)
        path = tmp_path / f"table.{scheme}"
        last = '"a\u2028 b",100' if scheme == "csv" else '{"text": "a\u2028 b", "n": "100"}'
        path.write_bytes(path.read_bytes() + b"\n\r\n\n" + last.encode())  # blank lines, and no end to the last
        index = line_index(str(path), quoted=scheme == "csv")
        assert len(index) == len(rows) + 1 + (scheme == "csv")
        parts = everything(uri).values()
        assert {r["n"]: r["text"] for part in parts for r in part} == {
            **{row["n"]: row["text"] for row in rows},
            "100": "a\u2028 b",
        }
        assert isinstance(line_index(str(path), quoted=scheme == "csv"), np.memmap)
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
        os.utime(path, ns=(1, 1))
        assert len(line_index(str(path), quoted=scheme == "csv")) < len(index)


def test_rows_that_cannot_be_read_name_themselves(tmp_path: Path) -> None:
    pictures(tmp_path)
    path = tmp_path / "t.jsonl"
    path.write_bytes(
        b'{"text": "\xff"}\n{"text"\n[1]\n{"image": "pictures/99.png"}\n{"image": "a word"}\n'
        + b'{"text": "'
        + b"x" * 10_000_000
        + b'"}\n'
    )
    (tmp_path / "v.jsonl").write_text('{"text": "v"}\n')
    source = open_source(f"jsonl:{tmp_path}/?train=t&validation=v", "train")
    for i, message in enumerate(
        ("not UTF-8", "not JSON", "list, where an object", "no file pictures/99.png", "is no path")
    ):
        with pytest.raises(RecordError, match=message):
            source[i]
    assert len(source[5]["text"]) == 10_000_000  # a long line is a record like others
    for scheme, text in (("csv", 'a,b\n1,2\n1\n"1"x,2\n'), ("tsv", 'a\tb\n1\t2\n"\n1\t2\t3\n')):
        (tmp_path / f"t.{scheme}").write_text(text)
        (tmp_path / f"v.{scheme}").write_text(text)
        source = open_source(f"{scheme}:{tmp_path}/?train=t&validation=v", "train")
        assert (source[0]["a"], source[0]["b"]) == ("1", "2")
        for i, message in ((1, "cells, where the table has 2 columns"), (2, "cells, where|not a row of cells")):
            with pytest.raises(RecordError, match=f"t.{scheme}, record {i + 1}: .*({message})"):
                source[i]


def test_paths_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "a/../../secret.png", "..\\secret.png"):
        rows = [{"image": name, "n": str(i)} for i in range(3)]
        with pytest.raises(UsageError, match="does not lie in") as caught:
            open_source(written("jsonl", tmp_path / "data", rows), "train")[0]
        assert not isinstance(caught.value, RecordError)  # no damage: somebody asks for what is not theirs
    rows = [{"image": str(tmp_path / "secret.png"), "n": str(i)} for i in range(3)]
    uri = written("jsonl", tmp_path / "data", rows)
    assert open_source(f"{uri}?root={tmp_path}", "train")[0]["image"] == png(1)


def test_a_bucket_is_a_folder(tmp_path: Path) -> None:
    system: Any = fsspec.filesystem("memory")
    rows = [{"image": f"p/{i}.png", "text": f"no. {i}"} for i in range(25)]
    system.pipe("/bucket/table.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    for i in range(25):
        system.pipe(f"/bucket/p/{i}.png", png(i))
    found = everything("jsonl:memory://bucket/table.jsonl")
    records = {record["text"]: record["image"] for part in found.values() for record in part}
    assert records == {f"no. {i}": png(i) for i in range(25)}
    assert everything("jsonl:memory://bucket/*.jsonl") == found
    table = pa.Table.from_pylist([{"text": str(i)} for i in range(9)])
    for split in ("train", "validation"):
        with system.open(f"/bucket/parts/{split}.parquet", "wb") as file:
            parquet.write_table(table, file)
    assert len(open_source("parquet:memory://bucket/parts", "train")) == 9
    with pytest.raises(UsageError, match=r"nowhere:// needs the package fsspec"):
        open_source("jsonl:nowhere://x/y.jsonl", "train")


def test_options_that_are_none(tmp_path: Path) -> None:
    uri = written("jsonl", tmp_path, [{"text": str(i)} for i in range(9)])
    write_array_record(tmp_path / "train.array_record", [{"id": str(i), "text": str(i)} for i in range(20)])
    records = f"array_record:{tmp_path}"
    (tmp_path / "semi.csv").write_text("text;label\n" + "".join(f"a, {i};b\n" for i in range(20)))
    read = everything(f"csv:{tmp_path}/semi.csv?separator=semicolon")
    assert sum(map(len, read.values())) == 20 and read["train"][0]["label"] == "b" and "a, " in read["train"][0]["text"]
    for wrong, split, message in (
        (f"{uri}?validatoin=1", "train", "has no option validatoin: there is validation, test, train, by, stratify"),
        (f"{uri}?validation=1", "train", "shares of validation and test must be above 0 and together below 1"),
        (f"{uri}?validation=0.5&test=0.5", "train", "shares of validation and test"),
        (f"{uri}?validation=0.5&validation=0.4", "train", "says validation twice"),
        (f"{uri}?validation=0.5", "test", "no split 'test' in .*: it has train, validation"),
        (f"{records}?by=text", "train", "has splits of its own .train.: leave out by="),
        (f"{records}", "validation", "no split 'validation'"),
        (f"jsonl:{tmp_path}/none.jsonl", "train", "no file .*none.jsonl"),
        (f"jsonl:{tmp_path}/a;", "train", "unknown data source"),
        ("photos/a.tar", "train", "unknown data source .*: expected SCHEME:PATH, such as wds:photos/a.tar"),
        ("folder:gs://bucket/x", "train", "a folder in a bucket is not read; `data convert` a copy of it"),
        (f"csv:{tmp_path}/semi.csv", "train", "its one column is 'text;label': .* add .separator=semicolon"),
        (written("jsonl", tmp_path / "one", [{"text": "1"}]), "train", "has 1 records, which cannot be divided"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            open_source(wrong, split)
        assert "\n" not in str(caught.value)
    assert len(open_source(f"{records}?validation=0.2", "validation")) >= 1
    assert {"folder", "hf", "jsonl", "wds", "tfds"} < set(schemes.names())


def test_a_text_of_parquet_that_is_none_spoils_one_row(tmp_path: Path) -> None:
    content = [b"one", b"tw\xe4o", b"three"]
    offsets = np.cumsum([0, *map(len, content)]).astype(np.int32)
    texts = pa.StringArray.from_buffers(3, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(content)))
    parquet.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    (tmp_path / "all").mkdir()
    (tmp_path / "t.parquet").rename(tmp_path / "all" / "train.parquet")
    source = open_source(f"parquet:{tmp_path}/all", "train")
    assert [source[i]["text"] for i in (0, 2)] == ["one", "three"]
    with pytest.raises(RecordError, match=r"train.parquet: row 2 is damaged \('utf-8' codec"):
        source[1]


def test_a_cell_of_csv_is_as_long_as_any_other_record(tmp_path: Path) -> None:
    uri = written("csv", tmp_path, [{"text": "word " * count, "label": "a"} for count in (10, 30_000, 60_000, 20)])
    found = everything(uri + "?validation=0.3")
    assert sorted(len(record["text"]) for part in found.values() for record in part) == [50, 100, 150_000, 300_000]
