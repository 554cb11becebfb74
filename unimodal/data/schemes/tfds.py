"""`tfds:NAME`: TensorFlow Datasets without TensorFlow: prepared sets in ArrayRecord form, through `tfds.data_source`."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.data.address import SPLITS, Address
from unimodal.data.values import read_column
from unimodal.errors import UsageError

logger = logging.getLogger(__name__)

FORM = "tfds:NAME[/CONFIG][:VERSION][@DATA_DIR]"
OPTIONS = {"rate": "samples a second, for sounds whose set does not tell"}
_PATH = re.compile(r"(?P<name>[A-Za-z]\w*)(?:/(?P<inner>[^:@?]+))?(?::(?P<config>[^@?]+))?(?:@(?P<data_dir>.+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """Decoded records of one split. `id` is "NAME/SPLIT/INDEX" and takes the place of any feature called id.

    Text features (`texts`, at the top level) come as str, images as uint8 arrays, sounds as the numbers of their
    samples with `rate`, the rest as TFDS gives it. A record with `label` of a named class has its name under `class`.
    places: the records of the split that are taken.
    """

    name: str
    split: str
    texts: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    rate: int | None
    places: range
    reader: Any = dataclasses.field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.places[index]
        record = self.reader[place]
        fields = dict(record) if isinstance(record, dict) else {"value": record}
        for key in self.texts:
            fields[key] = bytes(fields[key]).decode("utf-8", errors="replace")
        if "label" in self.classes and "class" not in fields and fields["label"] >= 0:  # -1: TFDS's "unknown"
            fields["class"] = self.classes["label"][int(fields["label"])]
        if self.rate is not None:
            fields.setdefault("rate", self.rate)
        return fields | {"id": self.id_at(index)}

    def id_at(self, index: int) -> str:
        """The record's id."""
        return f"{self.name}/{self.split}/{self.places[index]}"

    def column(self, name: str) -> list[Any]:
        """The values under `name`. Nothing else is decoded: a picture takes far longer than its label."""
        if name == "id":
            return [self.id_at(index) for index in range(len(self))]
        import tensorflow_datasets as tfds  # optional, as in `open_split`

        features, of = self.reader.dataset_info.features, name
        if isinstance(features, tfds.features.FeaturesDict):
            of = "label" if name == "class" and name not in features else name
            if of in features:
                # `tfds.decode.PartialDecoding` would do, but it asks TensorFlow for dtypes.
                some = tfds.features.FeaturesDict({of: features[of]})
                texts, classes = tuple({*self.texts} & {of}), {k: v for k, v in self.classes.items() if k == of}
                reader = _Partial(self.reader.data_source, some)
                return read_column(dataclasses.replace(self, texts=texts, classes=classes, reader=reader), name)
        return read_column(self, name)

    def class_names(self, column: str) -> tuple[str, ...]:
        """The names that the numbers under `column` stand for, () if they stand for nothing."""
        return self.classes.get(column, ())


@dataclasses.dataclass(frozen=True)
class _Partial:
    """Some features of each record."""

    encoded: Any  # bytes by place
    features: Any  # those that are decoded

    def __getitem__(self, place: int) -> Any:
        return self.features.deserialize_example_np(self.encoded[place])


def splits(address: Address) -> tuple[str, ...]:
    """Always its own: a set without validation is divided here, as its splits are known only once it is open."""
    return SPLITS


def open_split(address: Address, split: str | None) -> TfdsRecords:
    """`NAME[/CONFIG][:VERSION][@DATA_DIR]` as `tfds.data_source` reads it; NAME:CONFIG is understood, too.

    split: a split, or a slice as TFDS writes it, train[:80%]. A set without a split "validation" is validated on its "test";
    one that has neither, on the last tenth of "train", which then is not trained on. That is logged.

    Nothing is downloaded or generated: the set must have been prepared as ArrayRecord in DATA_DIR (by default
    ~/tensorflow_datasets). Raises UsageError when tensorflow-datasets is not installed, and for a set or split that
    is not there.
    """
    rest, split = address.path, split or "train"
    match, hz = _PATH.fullmatch(rest), address.options.get("rate")
    if match is None or not (hz is None or re.fullmatch(r"\d{1,9}", hz)):
        text = rest if hz is None else f"{rest}?rate={hz}"
        raise UsageError(f"cannot read 'tfds:{text}': expected {FORM}[?rate=HZ]")
    try:
        # Optional: it brings many packages along, and only tfds: uris need it.
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError("tfds: needs the package tensorflow-datasets: pip install tensorflow-datasets") from error
    _sounds_without_tensorflow()
    name, config = match["name"], match["config"]
    full = name if match["inner"] is None else f"{name}/{match['inner']}"
    if config is not None:
        full += f":{config}" if _VERSION.fullmatch(config) or match["inner"] else f"/{config}"
    data_dir = match["data_dir"] and str(Path(match["data_dir"]).expanduser())
    builder = _builder(tfds, full, data_dir)
    if not builder.info.splits:
        raise UsageError(f"tfds:{rest} is not prepared: run `tfds build {full} --file_format=array_record` first")
    found, share = _split(builder.info.splits, split, rest)
    reader = _reader(tfds, full, found, data_dir)
    if len(reader) == 0:
        raise UsageError(f"split {found!r} of tfds:{rest} is empty")
    features = builder.info.features
    named = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    texts = tuple(key for key, feature in named.items() if isinstance(feature, tfds.features.Text))
    classes = {
        key: tuple(feature.names)
        for key, feature in named.items()
        if isinstance(feature, tfds.features.ClassLabel) and feature.names
    }
    rates = [feature.sample_rate for feature in named.values() if isinstance(feature, tfds.features.Audio)]
    rate = int(hz) if hz else next((int(r) for r in rates if r), None)
    return TfdsRecords(name, found, texts, classes, rate, _places(len(reader), share, rest), reader)


def _split(splits: Mapping[str, Any], wanted: str, rest: str) -> tuple[str, str]:
    """The split to read, and which share of it: "all", "first" nine tenths or "last" tenth."""
    if "[" in wanted or "+" in wanted:
        return wanted, "all"
    if wanted in splits:
        return wanted, "first" if wanted == "train" and not {"validation", "test"} & set(splits) else "all"
    if wanted == "validation" and "test" in splits:
        _say_once(f"tfds:{rest} has no split validation; its test is taken")
        return "test", "all"
    if wanted == "validation" and "train" in splits:
        _say_once(f"tfds:{rest} has neither validation nor test; the last tenth of train is taken")
        return "train", "last"
    raise UsageError(f"no split {wanted!r} in tfds:{rest}: it has {', '.join(sorted(splits))}")


def _places(count: int, share: str, rest: str) -> range:
    if share == "all":
        return range(count)
    kept = count - max(1, count // 10)
    if not kept:
        raise UsageError(f"tfds:{rest} has one record, which cannot be both trained on and validated on")
    return range(kept) if share == "first" else range(kept, count)


@functools.cache
def _say_once(text: str) -> None:
    logger.warning("%s (said once)", text)


def _sounds_without_tensorflow() -> None:
    """Let sound features be made: they ask TensorFlow for a dtype, and for nothing else where records are arrays."""
    if importlib.util.find_spec("tensorflow") is None:
        from tensorflow_datasets.core.features import audio_feature

        dtypes = types.SimpleNamespace(as_dtype=np.dtype)
        setattr(audio_feature, "tf", types.SimpleNamespace(dtypes=dtypes, string=np.object_))  # noqa: B010


def _builder(tfds: Any, full: str, data_dir: str | None) -> Any:
    where = data_dir or "~/tensorflow_datasets"
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UsageError(f"no directory {data_dir}: expected a TFDS data directory with {full} in it")
    try:
        return tfds.builder(full, data_dir=data_dir, try_gcs=False)
    except Exception as error:  # tfds raises many kinds here, and imports of a data set's own code raise any
        reason = " ".join(str(error).split()).split(". ")[0][:160]  # what follows lists every data set there is
        raise UsageError(f"no data set {full!r} in {where} ({reason})") from error


def _reader(tfds: Any, full: str, split: str, data_dir: str | None) -> Any:
    try:
        return tfds.data_source(full, split=split, data_dir=data_dir, download=False, try_gcs=False)
    except Exception as error:  # as above; most often: not prepared, or prepared as TFRecord
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"{full!r} is not prepared as ArrayRecord in {data_dir or '~/tensorflow_datasets'}: "
            f"run `tfds build {full} --file_format=array_record` ({type(error).__name__}: {reason})"
        ) from error
