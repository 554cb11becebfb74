"""TFDS without TensorFlow, on a small set written here in TFDS's on-disk format."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from PIL import Image

from unimodal.data import open_source
from unimodal.errors import UsageError

FEATURES = "tensorflow_datasets.core.features."


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, head = len(payload), bytes([number << 3 | 2])
    while size > 127:
        head += bytes([size & 127 | 128])
        size >>= 7
    return head + bytes([size]) + payload


def tf_example(features: dict[str, bytes | int]) -> bytes:
    """A serialised tf.train.Example of single values: bytes_list is field 1 of a feature, int64_list field 3."""
    entries = b""
    for name, value in features.items():
        kind = field(3, field(1, bytes([value]))) if isinstance(value, int) else field(1, field(1, value))
        entries += field(1, field(1, name.encode()) + field(2, kind))
    return field(1, entries)


def png(value: int) -> bytes:
    import io

    out = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 2, 3)).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tfds")
    folder = root / "tiny_set" / "1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for split, count in (("train", 5), ("test", 2)):
        path = folder / f"tiny_set-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for index in range(count):
            writer.write(
                tf_example({"image": png(index), "label": index % 2, "caption": f"picture é {index}".encode()})
            )
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": split, "filepathTemplate": template, "numBytes": "1", "shardLengths": [str(count)]})
    info = {
        "name": "tiny_set",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "moduleName": "none",
        "splits": splits,
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = {
        "image": {
            "pythonClassName": FEATURES + "image_feature.Image",
            "image": {"shape": {"dimensions": ["2", "3", "3"]}, "dtype": "uint8", "encodingFormat": "png"},
        },
        "label": {"pythonClassName": FEATURES + "class_label_feature.ClassLabel", "classLabel": {"numClasses": "2"}},
        "caption": {"pythonClassName": FEATURES + "text_feature.Text", "text": {}},
    }
    (folder / "features.json").write_text(
        json.dumps({"pythonClassName": FEATURES + "features_dict.FeaturesDict", "featuresDict": {"features": features}})
    )
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
        (f"tiny_set@{data_dir}", "validation", "no split 'validation' in tfds:tiny_set@.*: it has test, train"),
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
        ("9", "train", "cannot read 'tfds:9': expected tfds:NAME, tfds:NAME:CONFIG or tfds:NAME:CONFIG@DATA_DIR"),
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
