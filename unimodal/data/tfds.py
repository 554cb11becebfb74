"""TensorFlow Datasets without TensorFlow: prepared sets in ArrayRecord form, through `tfds.data_source`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from unimodal.errors import UsageError

_URI = re.compile(r"(?P<name>[A-Za-z]\w*)(?::(?P<config>[^@]+))?(?:@(?P<data_dir>.+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """Decoded records of one split. `id` is "NAME/SPLIT/INDEX" and takes the place of any feature called id.

    Text features (`texts`, at the top level) come as str, images as uint8 arrays, the rest as TFDS gives it.
    """

    name: str
    split: str
    texts: tuple[str, ...]
    reader: Any = dataclasses.field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        record = self.reader[index]
        fields = dict(record) if isinstance(record, dict) else {"value": record}
        for key in self.texts:
            fields[key] = bytes(fields[key]).decode("utf-8", errors="replace")
        return fields | {"id": f"{self.name}/{self.split}/{index}"}


def open_tfds(rest: str, split: str) -> TfdsRecords:
    """`NAME[:CONFIG][@DATA_DIR]` as `tfds.data_source` reads it; CONFIG may also be a version such as 3.0.1.

    Nothing is downloaded or generated: the set must have been prepared as ArrayRecord in DATA_DIR (by default
    ~/tensorflow_datasets). Raises UsageError when tensorflow-datasets is not installed, and for a set or split that
    is not there.
    """
    match = _URI.fullmatch(rest)
    if match is None:
        raise UsageError(
            f"cannot read 'tfds:{rest}': expected tfds:NAME, tfds:NAME:CONFIG or tfds:NAME:CONFIG@DATA_DIR"
        )
    try:
        # Optional: it brings many packages along, and only tfds: uris need it.
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError("tfds: needs the package tensorflow-datasets: pip install tensorflow-datasets") from error
    name, config = match["name"], match["config"]
    full = name if config is None else f"{name}:{config}" if _VERSION.fullmatch(config) else f"{name}/{config}"
    data_dir = match["data_dir"] and str(Path(match["data_dir"]).expanduser())
    builder = _builder(tfds, full, data_dir)
    if not builder.info.splits:
        raise UsageError(f"tfds:{rest} is not prepared: run `tfds build {full} --file_format=array_record` first")
    if split not in builder.info.splits:
        raise UsageError(f"no split {split!r} in tfds:{rest}: it has {', '.join(sorted(builder.info.splits))}")
    reader = _reader(tfds, full, split, data_dir)
    if len(reader) == 0:
        raise UsageError(f"split {split!r} of tfds:{rest} is empty")
    features = builder.info.features
    named = features.items() if isinstance(features, tfds.features.FeaturesDict) else ()
    texts = tuple(key for key, feature in named if isinstance(feature, tfds.features.Text))
    return TfdsRecords(name, split, texts, reader)


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
