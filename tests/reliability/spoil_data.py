"""Small data of every kind in files, and all that can be read of it: records, pictures, sounds, ids."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import soundfile
from PIL import Image

from unimodal.data.audio import decode_audio
from unimodal.data.encoders import open_encoder
from unimodal.data.pictures import decode_image
from unimodal.data.sources import open_source, write_array_record
from unimodal.errors import RecordError

ROWS = 12
REFERENCES = Path(__file__).parents[1] / "reference" / "interop" / "preprocess"


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def wav(value: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.full(60, value / 40, np.float32), 16_000, format="WAV")
    return out.getvalue()


def rows() -> list[dict[str, Any]]:
    return [{"text": f'said "{i}", é', "label": "ab"[i % 2], "who": f"s{i // 3}"} for i in range(ROWS)]


def _lines(folder: Path) -> None:
    (folder / "t.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows()), "utf-8")


def _table(folder: Path) -> None:
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows()[0])
        writer.writeheader()
        writer.writerows(rows())


def _tabs(folder: Path) -> None:
    lines = ["\t".join(rows()[0]), *("\t".join(row.values()) for row in rows())]
    (folder / "t.tsv").write_text("\n".join(lines), "utf-8")


def _parquet(folder: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(rows()), folder / "t.parquet", row_group_size=5)


def _tar(folder: Path) -> None:
    with tarfile.open(folder / "t.tar", "w") as tar:
        for i in range(ROWS):
            for ending, content in (("png", png(i)), ("txt", b"seen"), ("cls", b"%d" % (i % 3)), ("json", b'{"a": 1}')):
                member = tarfile.TarInfo(f"{i:04}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _array_record(folder: Path) -> None:
    records = [{"id": str(i), "image": png(i), "text": "seen", "label": i % 3} for i in range(ROWS)]
    for split in ("train", "validation"):
        write_array_record(folder / f"{split}.array_record", records)


def _pictures(folder: Path) -> None:
    for i in range(ROWS):
        place = folder / "ab"[i % 2]
        place.mkdir(exist_ok=True)
        (place / f"{i}.png").write_bytes(png(i))
        (place / f"{i}.txt").write_text(f"no. {i}")
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{'ab'[i % 2]}/{i}.png", "who": i}) + "\n" for i in range(ROWS))
    )


def _sounds(folder: Path) -> None:
    for i in range(ROWS):
        (folder / f"{i}.wav").write_bytes(wav(i))


def _texts(folder: Path) -> None:
    for i in range(ROWS):
        (folder / f"{i}.txt").write_text(f"é {i}\n" * 9, "utf-8")


def _vocabularies(folder: Path) -> None:
    for path in sorted(REFERENCES.rglob("*")):
        if path.name in ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json"):
            target = folder / path.parent.name / path.name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


DATA: dict[str, tuple[str, Callable[[Path], None]]] = {
    "jsonl": ("jsonl:{}/t.jsonl", _lines),
    "csv": ("csv:{}/t.csv", _table),
    "tsv": ("tsv:{}/t.tsv", _tabs),
    "parquet": ("parquet:{}/t.parquet", _parquet),
    "wds": ("wds:{}/t.tar", _tar),
    "array_record": ("array_record:{}", _array_record),
    "pictures": ("folder:{}", _pictures),
    "sounds": ("folder:{}", _sounds),
    "texts": ("folder:{}", _texts),
    "vocabularies": ("", _vocabularies),
}


def write_data(folder: Path) -> None:
    """One folder for each kind."""
    for kind, (_, write) in DATA.items():
        (folder / kind).mkdir(parents=True)
        write(folder / kind)


def read_all(kind: str, folder: Path) -> int:
    """Read everything; returns how many records were left out, each in one line. Raises UsageError as reading does."""
    if kind == "vocabularies":
        for each in sorted(path for path in folder.iterdir() if path.is_dir()):
            encoder = open_encoder(str(each))
            encoder.decode(encoder.encode("Hello, wörld 12"))
        return 0
    left_out = 0
    for split in ("train", "validation"):
        source = open_source(DATA[kind][0].format(folder), split)
        for i in range(len(source)):
            try:
                record = source[i]
                if "image" in record:
                    decode_image(record["image"], name=record["id"])
                if "audio" in record:
                    decode_audio(record["audio"], 16_000, name=record["id"])
            except RecordError as error:
                assert "\n" not in str(error), str(error)
                left_out += 1
    return left_out
