"""Any source as ArrayRecord files: in shards, each whole or not there, so that a conversion goes on where it was killed."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
from PIL import Image

from unimodal.data.address import SPLITS
from unimodal.data.dataset import Source
from unimodal.data.records import SUFFIX, write_array_record
from unimodal.data.skipped import FILE, LEDGER, Where
from unimodal.data.sources import open_source
from unimodal.data.values import class_names, id_at
from unimodal.errors import RecordError, UsageError

MANIFEST = "convert.json"
SUMS = "SHA256SUMS"
_OURS = (f"{MANIFEST}.partial", FILE)  # what a call that was killed early may have left
_TRIED = 64  # records whose size says how many shards there will be


class Shown(Protocol):
    """Is told of every record that was read: the split, how many so far, and of how many."""

    def __call__(self, split: str, done: int, total: int) -> None: ...


def convert(
    uri: str,
    target: Path,
    *,
    splits: Sequence[str] = (),
    shard_bytes: int = 256 << 20,
    show: Shown = lambda split, done, total: None,
) -> dict[str, int]:
    """Write the records of `uri` to `target`, and return how many each split has.

    splits: () for those of train, validation and test that there are. A shard that an earlier call finished is kept, if its
    checksum is right. Records that cannot be read are left out and listed (`skipped`). At the end every file is opened and its
    records are counted. `convert.json` says what was done, `SHA256SUMS` is for `sha256sum -c`.

    Raises UsageError for a target that holds something else, and for counts or checksums that do not agree.
    """
    plan = _plan(uri, target, splits or SPLITS, required=bool(splits), shard_bytes=shard_bytes)
    for split, entry in plan["splits"].items():
        source = open_source(uri, split)
        if len(source) != entry["records"]:
            raise UsageError(f"{uri} {split} has {len(source)} records now, {entry['records']} when conversion began")
        if names := class_names(source):
            (target / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        for number in range(entry["shards"]):
            path = target / _name(split, number, entry["shards"])
            key, stretch = path.name, _stretch(number, entry)
            told = entry["done"].get(key)
            if told is None or not path.is_file() or _checksum(path) != told["sha256"]:
                written = _write(
                    path, source, stretch, Where(uri, split), lambda done, s=split, e=entry: show(s, done, e["records"])
                )
                entry["done"][key] = {"records": written, "sha256": _checksum(path), "bytes": path.stat().st_size}
                _save(target, plan)
            show(split, stretch.stop, entry["records"])
    return _verified(target, plan)


def begun(uri: str, target: Path) -> dict[str, Any] | None:
    """Read the plan of an earlier call, or None where there was none. Raises UsageError if it was of another source."""
    if not (target / MANIFEST).is_file():
        return None
    try:
        plan = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        what = plan["source"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{target / MANIFEST} is not what a conversion writes: choose another folder") from None
    if what != uri:
        raise UsageError(f"{target} holds a conversion of {what}: choose another folder")
    return plan


def _plan(uri: str, target: Path, wanted: Sequence[str], *, required: bool, shard_bytes: int) -> dict[str, Any]:
    """Plan what is to be done, as an earlier call began it or as this one begins it."""
    if plan := begun(uri, target):
        return plan
    others = sorted(path.name for path in target.iterdir() if path.name not in _OURS) if target.is_dir() else []
    if others:
        what = f"{SUFFIX} files that are no conversion" if any(n.endswith(SUFFIX) for n in others) else "other files"
        raise UsageError(f"{target} has {what}, such as {others[0]}: choose another folder")
    found: dict[str, Source] = {}
    for split in wanted:
        try:
            found[split] = open_source(uri, split)
        except UsageError:
            if required or split == "train":
                raise
    target.mkdir(parents=True, exist_ok=True)
    plan = {"source": uri, "splits": {}}
    for split, source in found.items():
        shards = max(1, min(len(source), math.ceil(_size(source) * len(source) / shard_bytes)))
        plan["splits"][split] = {"records": len(source), "shards": shards, "done": {}}
    _save(target, plan)
    return plan


def _size(source: Source) -> float:
    """Bytes of a record, by some of them."""
    sizes = []
    for i in range(min(_TRIED, len(source))):
        try:
            record = packable(source[i * len(source) // min(_TRIED, len(source))])
        except RecordError:
            continue
        sizes.append(sum(len(value) if isinstance(value, bytes | str) else 16 for value in record.values()))
    return float(np.mean(sizes)) if sizes else 1.0


def _write(path: Path, source: Source, places: range, where: Where, show: Callable[[int], None]) -> int:
    def records() -> Iterator[dict[str, Any]]:
        for place in places:
            try:
                record = packable(source[place])
            except RecordError as error:
                LEDGER.note(where, id_at(source, place), error, len(source))
            else:
                LEDGER.looked(where)
                yield record
            if (place + 1) % 64 == 0:
                show(place + 1)

    return write_array_record(path, records())


def packable(record: dict[str, Any]) -> dict[str, Any]:
    """A record in what msgpack holds: pictures as PNG, sounds as WAV of floats, numbers of numpy as Python's."""
    rate = record.get("rate")
    return {name: _packable(value, rate) for name, value in record.items()}


def _packable(value: Any, rate: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(name): _packable(inner, rate) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_packable(inner, rate) for inner in value]
    if not isinstance(value, np.ndarray):
        return value
    out = io.BytesIO()
    if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (1, 3, 4):
        Image.fromarray(value[:, :, 0] if value.shape[2] == 1 else value).save(out, "PNG")
        return out.getvalue()
    if rate is not None and value.dtype.kind == "f" and value.ndim == 1 and len(value) > 1:
        soundfile.write(out, value.astype(np.float32), int(rate), "FLOAT", format="WAV")
        return out.getvalue()
    return value.tolist()


def _stretch(number: int, entry: dict[str, Any]) -> range:
    return range(number * entry["records"] // entry["shards"], (number + 1) * entry["records"] // entry["shards"])


def _name(split: str, number: int, count: int) -> str:
    return f"{split}{SUFFIX}" if count == 1 else f"{split}-{number:05}-of-{count:05}{SUFFIX}"


def _save(target: Path, plan: dict[str, Any]) -> None:
    partial = target / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(plan, indent=1, ensure_ascii=False), encoding="utf-8")
    partial.replace(target / MANIFEST)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(target: Path, plan: dict[str, Any]) -> dict[str, int]:
    """Count what was written, by reading it."""
    counts, sums = {}, []
    for split, entry in plan["splits"].items():
        told = sum(part["records"] for part in entry["done"].values())
        counts[split] = len(open_source(f"array_record:{target}", split))
        if counts[split] != told:
            raise UsageError(f"{target}: {split} has {counts[split]} records, where {told} were written")
        sums += [f"{part['sha256']}  {name}" for name, part in sorted(entry["done"].items())]
    (target / SUMS).write_text("\n".join(sums) + "\n", encoding="utf-8")
    return counts
