"""TFDS without TensorFlow, on a small set written here in TFDS's on-disk format."""

from __future__ import annotations

import builtins
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from PIL import Image
from tiny import build, plain

from unimodal import data
from unimodal.data import class_names, column, open_source
from unimodal.data.schemes import tfds
from unimodal.errors import UsageError

FEATURES = "tensorflow_datasets.core.features."


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, head = len(payload), bytes([number << 3 | 2])
    while size > 127:
        head += bytes([size & 127 | 128])
        size >>= 7
    return head + bytes([size]) + payload


def varint(value: int) -> bytes:
    """A number as a protobuf has it: seven bits a byte, the lowest first, negative ones as 64 bits."""
    value, made = value & (1 << 64) - 1, b""
    while value > 127:
        value, made = value >> 7, made + bytes([value & 127 | 128])
    return made + bytes([value])


def tf_example(features: dict[str, Any]) -> bytes:
    """A serialised tf.train.Example: bytes_list is field 1 of a feature, float_list field 2, int64_list field 3."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            kind = field(1, field(1, value))
        elif np.asarray(value).dtype.kind == "f":
            kind = field(2, field(1, np.asarray(value, "<f4").tobytes()))
        else:
            kind = field(3, field(1, b"".join(varint(int(v)) for v in np.ravel(value))))
        entries += field(1, field(1, name.encode()) + field(2, kind))
    return field(1, entries)


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 2, 3)).save(out, format="PNG")
    return out.getvalue()


def written(root: Path, name: str, features: dict[str, Any], splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A prepared set below `root`: features as features.json has them, records by split."""
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    infos = []
    for split, records in splits.items():
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(tf_example(record))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        lengths = [str(len(records))]
        infos.append({"name": split, "filepathTemplate": template, "numBytes": "1", "shardLengths": lengths})
    info = {"name": name, "version": "1.0.0", "fileFormat": "array_record", "moduleName": "none", "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(
        json.dumps({"pythonClassName": FEATURES + "features_dict.FeaturesDict", "featuresDict": {"features": features}})
    )
    return folder


LABEL = {"pythonClassName": FEATURES + "class_label_feature.ClassLabel", "classLabel": {"numClasses": "2"}}


def picture_feature(*shape: int) -> dict[str, Any]:
    image = {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": "uint8", "encodingFormat": "png"}
    return {"pythonClassName": FEATURES + "image_feature.Image", "image": image}


def sound_feature(**fields: Any) -> dict[str, Any]:
    sound = {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "encoding": "none", **fields}
    return {"pythonClassName": FEATURES + "audio_feature.Audio", "audio": sound}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tfds")
    features = {
        "image": picture_feature(2, 3, 3),
        "label": LABEL,
        "caption": {"pythonClassName": FEATURES + "text_feature.Text", "text": {}},
    }
    splits = {
        split: [{"image": png(i), "label": i % 2, "caption": f"picture é {i}".encode()} for i in range(count)]
        for split, count in (("train", 5), ("test", 2))
    }
    folder = written(root, "tiny_set", features, splits)
    (folder / "label.labels.txt").write_text("cat\ndog\n")
    return root


@pytest.fixture
def _with_tfds() -> None:
    pytest.importorskip("tensorflow_datasets")


@pytest.mark.usefixtures("_with_tfds")
@pytest.mark.parametrize("name", ["tiny_set", "tiny_set:1.0.0"])
def test_records_come_decoded_without_tensorflow(data_dir: Path, name: str) -> None:
    source = open_source(f"tfds:{name}@{data_dir}", "train")
    assert len(source) == 5
    for index in (0, 4):
        record: dict[str, Any] = source[index]
        assert record["id"] == f"tiny_set/train/{index}"
        assert record["image"].shape == (2, 3, 3) and record["image"].dtype == np.uint8
        assert record["image"][0, 0].tolist() == [index, 2, 3]
        assert record["label"] == index % 2 and record["caption"] == f"picture é {index}"
    with pytest.raises(IndexError):
        source[5]
    assert len(open_source(f"tfds:{name}@{data_dir}", "test")) == 2
    assert "tensorflow" not in sys.modules


@pytest.mark.usefixtures("_with_tfds")
def test_what_is_not_there(data_dir: Path) -> None:
    for rest, split, message in (
        (f"tiny_set@{data_dir}", "held_out", "no split 'held_out' in tfds:tiny_set@.*: it has test, train"),
        (
            f"tiny_set@{data_dir}/none",
            "train",
            "no directory .*none: expected a TFDS data directory with tiny_set in it",
        ),
        (f"tiny_sett@{data_dir}", "train", "no data set 'tiny_sett' in "),
        (f"tiny_set:2.0.0@{data_dir}", "train", "no data set 'tiny_set:2.0.0' in "),
        (
            f"mnist@{data_dir}",
            "train",
            "tfds:mnist@.* is not prepared: run `tfds build mnist --file_format=array_record`",
        ),
        ("9", "train", r"cannot read 'tfds:9': expected tfds:NAME\[/CONFIG\]\[:VERSION\]\[@DATA_DIR\]\[\?rate=HZ\]"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            open_source(f"tfds:{rest}", split)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_without_the_package_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "tensorflow_datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="pip install tensorflow-datasets"):
        open_source("tfds:mnist", "train")


@pytest.mark.usefixtures("_with_tfds")
def test_classes_have_their_names(data_dir: Path) -> None:
    source = open_source(f"tfds:tiny_set@{data_dir}", "train")
    assert class_names(source) == ("cat", "dog") and class_names(source, "caption") == ()
    assert [source[i]["class"] for i in range(5)] == ["cat", "dog", "cat", "dog", "cat"]


@pytest.mark.usefixtures("_with_tfds")
def test_a_column_decodes_no_pictures(tmp_path: Path) -> None:
    features = {
        "image": picture_feature(2, 3, 3),
        "label": LABEL,
        "caption": {"pythonClassName": FEATURES + "text_feature.Text", "text": {}},
    }
    records = [{"image": b"none", "label": i % 2, "caption": f"é {i}".encode()} for i in range(4)]
    (written(tmp_path, "set", features, {"train": records, "test": records}) / "label.labels.txt").write_text(
        "cat\ndog\n"
    )
    source = open_source(f"tfds:set@{tmp_path}", "train")
    assert column(source, "label") == [0, 1, 0, 1] and column(source, "class") == ["cat", "dog", "cat", "dog"]
    assert column(source, "caption") == [f"é {i}" for i in range(4)]
    assert column(source, "id") == [f"set/train/{i}" for i in range(4)]
    assert "tensorflow" not in sys.modules


@pytest.mark.usefixtures("_with_tfds")
def test_gray_pictures_train(tmp_path: Path) -> None:
    """A set of MNIST's kind: [H,W,1], train and test only."""

    def gray(value: int) -> bytes:
        out = io.BytesIO()
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(out, format="PNG")
        return out.getvalue()

    features = {"image": picture_feature(4, 4, 1), "label": LABEL}
    splits = {name: [{"image": gray(10 * i), "label": i % 2} for i in range(4)] for name in ("train", "test")}
    written(tmp_path, "digits", features, splits)
    uri = f"tfds:digits@{tmp_path}"
    assert open_source(uri, "train")[3]["image"].shape == (4, 4, 1)
    config = plain("vit", tasks__vit__source=uri, tasks__vit__batch_size=4, tokenizers__image__image_size=(8, 8))
    experiment = build(config)
    (task,) = experiment.tasks
    batch = next(experiment.train_batches(task))
    assert batch["image"].shape == (4, 8, 8, 3) and batch["label"].tolist().count(1) == 2
    (seen,) = data.eval_batches(task.inputs(experiment.model).dataset("validation"), batch_size=4)
    expected = np.arange(0, 40, 10, dtype=np.float32) / 127.5 - 1
    np.testing.assert_allclose(seen["image"], np.broadcast_to(expected[:, None, None, None], (4, 8, 8, 3)), atol=1e-6)


@pytest.mark.usefixtures("_with_tfds")
def test_validation_where_a_set_has_none(data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tfds._say_once.cache_clear()
    written(tmp_path, "whole", {"label": LABEL}, {"train": [{"label": i % 2} for i in range(25)]})
    with caplog.at_level("WARNING"):
        test = open_source(f"tfds:tiny_set@{data_dir}", "validation")
        parts = [open_source(f"tfds:whole@{tmp_path}", split) for split in ("train", "validation")]
    assert [record["id"] for record in test] == ["tiny_set/test/0", "tiny_set/test/1"]
    assert [[record["id"] for record in part] for part in parts] == [
        [f"whole/train/{i}" for i in range(23)],
        ["whole/train/23", "whole/train/24"],
    ]
    assert [record.message for record in caplog.records] == [
        f"tfds:tiny_set@{data_dir} has no split validation; its test is taken (said once)",
        f"tfds:whole@{tmp_path} has neither validation nor test; the last tenth of train is taken (said once)",
    ]


@pytest.mark.usefixtures("_with_tfds")
def test_sounds_come_scaled_with_their_rate(tmp_path: Path) -> None:
    wave = np.array([-32768, -1, 0, 8192, 32767])
    floats = np.array([-0.5, 0.25, 2.0], np.float32)
    written(tmp_path, "ints", {"audio": sound_feature(sampleRate="8000")}, {"train": [{"audio": wave}] * 10})
    written(tmp_path, "floats", {"audio": sound_feature(dtype="float32")}, {"train": [{"audio": floats}] * 10})
    record = open_source(f"tfds:ints@{tmp_path}", "train")[0]
    assert record["rate"] == 8000
    np.testing.assert_array_equal(data.decode_sound(record, 8000)["audio"], wave / 32768)
    record = open_source(f"tfds:floats@{tmp_path}?rate=16000", "train")[0]
    np.testing.assert_array_equal(data.decode_sound(record, 16_000)["audio"], floats)
    with pytest.raises(UsageError, match="^floats/train/0: its samples come without a rate"):
        data.decode_sound(open_source(f"tfds:floats@{tmp_path}", "train")[0], 16_000)
    assert "tensorflow" not in sys.modules
