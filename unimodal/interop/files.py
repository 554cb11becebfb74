"""Directories of safetensors: headers first, tensors only when asked for, one at a time, from the file itself."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unimodal.errors import UsageError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LONGEST = 100 * 2**20  # bytes of a header, which the format allows
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# All tensors, heads too, under their names; weights_only refuses whatever else the pickle holds.
CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file({{k: v.contiguous().clone() for k, v in torch.load('{}', map_location='cpu', weights_only=True).items()}}, "
    "'model.safetensors')\""
)

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """The place of one tensor in a file. `read` maps it from the file: bytes reach memory only as they are used."""

    name: str  # as the checkpoint calls it
    file: Path  # that holds it
    dtype: np.dtype[Any]  # as stored
    shape: tuple[int, ...]  # as stored
    offset: int  # of its first byte in the file

    def read(self) -> np.ndarray:
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, mode="r", offset=self.offset, shape=self.shape or (1,)).reshape(
            self.shape
        )


@dataclass(frozen=True)
class Source:
    """A checkpoint directory whose headers have been read and checked."""

    directory: Path  # of the checkpoint
    config_text: str  # config.json as it stands
    tensors: Mapping[str, Tensor]  # by name, in the files' order

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(self.config_text)

    def files(self) -> dict[str, list[str]]:
        """File name → names of its tensors."""
        result: dict[str, list[str]] = {}
        for tensor in self.tensors.values():
            result.setdefault(tensor.file.name, []).append(tensor.name)
        return result


def open_source(directory: Path) -> Source:
    """Read config.json and the headers of all safetensors files of a directory; no weights yet.

    Raises UsageError, naming the file, if the directory is not a checkpoint, holds only pickles, or a file is damaged.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory; give one with config.json and model.safetensors")
    path = directory / "config.json"
    if not path.exists():
        raise UsageError(f"{directory} has no config.json; give the directory of a Hugging Face checkpoint")
    read_json(path)  # so that what is wrong with it is said now, and of the file
    text = path.read_text(encoding="utf-8")
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(directory):
        tensors |= read_header(file)
    return Source(directory, text, tensors)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises UsageError if it does not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # no JSON, no UTF-8, a number of thousands of digits, brackets without end
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} should hold a JSON object, but holds a {type(value).__name__}")
    return value


def _weight_files(directory: Path) -> list[Path]:
    if (directory / INDEX).exists():
        return _shards(directory)
    if (directory / SINGLE).exists():
        return [directory / SINGLE]
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise UsageError(
            f"{directory} holds {pickles[0]} but no {SINGLE}, and a pickle can run any code, so it is not opened; "
            f"convert it once, in that directory: {CONVERT.format(pickles[0])}"
        )
    raise UsageError(f"{directory} has no {SINGLE} and no {INDEX}")


def _shards(directory: Path) -> list[Path]:
    """The files that the index names. Raises UsageError if one is missing, or has not a tensor that it should have."""
    index = directory / INDEX
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UsageError(f"{index} has no weight_map from tensors to files; fetch it again")
    if strange := [name for name in where.values() if Path(name).name != name or not name.strip()]:
        raise UsageError(f"{index} names {strange[0]!r}, which is no file of {directory}; fetch it again")
    for name, shard in where.items():
        if not (directory / shard).exists():
            raise UsageError(
                f"{directory / shard} is missing, although {INDEX} names it for {name} and others; fetch it again"
            )
    return [directory / shard for shard in sorted(set(where.values()))]


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. Raises UsageError if it is cut short or not of this format."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if 8 + length > size or length > LONGEST:
            raise UsageError(
                f"{file} is truncated or no safetensors file: {size} bytes, shorter than its header; fetch it again"
            )
        try:
            header = json.loads(stream.read(length))
            assert isinstance(header, dict)
        except (ValueError, AssertionError, RecursionError) as error:
            raise UsageError(f"{file} is not a safetensors file: its header is no JSON object") from error
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: _tensor(file, size, 8 + length, name, entry) for name, entry in entries.items()}


def _tensor(file: Path, size: int, start: int, name: str, entry: Any) -> Tensor:
    """Read one tensor's entry in the header of a file of `size` bytes, whose tensors begin at byte `start`."""
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not isinstance(kind, str) or not all(type(number) is int for number in (*shape, begin, end)):
            raise ValueError(f"dtype {kind!r}, shape {shape!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file}: the header does not say dtype, shape and data_offsets of tensor {name}") from error
    if kind not in DTYPES:
        raise UsageError(f"{file}: tensor {name} has the type {kind}, which is not one of {', '.join(DTYPES)}")
    tensor = Tensor(name, file, DTYPES[kind], shape, start + begin)
    if begin < 0 or min(shape, default=0) < 0 or end - begin != math.prod(shape) * tensor.dtype.itemsize:
        raise UsageError(f"{file}: tensor {name} of shape {shape} does not take the {end - begin} bytes it is given")
    if start + end > size:
        raise UsageError(
            f"{file} is truncated: {size} bytes, but tensor {name} ends at byte {start + end}; fetch it again"
        )
    return tensor


def write_file(
    file: Path, shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], values: Iterable[np.ndarray]
) -> None:
    """Write tensors of known shapes and dtypes one by one as `values` yields them; the file appears when it is whole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (shape, dtype) in shapes.items():
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)))
        stream.write(text)
        for (shape, dtype), value in zip(shapes.values(), values, strict=True):
            assert value.shape == shape and value.dtype == dtype
            stream.write(np.ascontiguousarray(value).tobytes())
    partial.replace(file)


def small_files(directory: Path) -> Iterator[Path]:
    """List a checkpoint's files besides weights (vocabularies, preprocessing, …) of at most 64 MiB, relative to it."""
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        named = path.suffix in (".json", ".txt", ".model", ".jinja", ".md")
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and named and not hidden and len(relative.parts) <= 2 and path.stat().st_size < 64 * 2**20:
            yield relative
