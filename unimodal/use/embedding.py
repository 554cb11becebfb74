"""Embeddings: a query of several parts, and a file of numpy's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from unimodal.errors import UsageError
from unimodal.storage import write_whole
from unimodal.use.answering import Asking, answered
from unimodal.use.inputs import Entry, joined, read_file
from unimodal.use.output import json_line, rows_of


def query_of(asking: Asking, parts: Mapping[str, str]) -> np.ndarray:
    """The embedding of a query's parts (image, text, sound), of unit length. Raises UsageError for one that cannot be read.

    A model that reads several modalities in one question is asked so. Else it is the sum of the parts' embeddings.
    """
    read = {
        kind: partial(lambda text: {"id": "text", "text": text}, value)
        if kind == "text"
        else partial(read_file, Path(value))
        for kind, value in parts.items()
    }
    asked = [Entry(value, read[kind], (kind,)) for kind, value in parts.items()]
    if len(asked) > 1 and asking.reads((whole := joined(asked)).reads[0]):
        asked = [whole]
    rows = list(answered(asking, asked))
    if bad := [row for row in rows if "error" in row]:
        raise UsageError(f"{bad[0]['id']}: {bad[0]['error']}")
    total = np.sum([np.asarray(row["embedding"], np.float32) for row in rows], axis=0)
    return total / max(float(np.linalg.norm(total)), 1e-12)


def to_numpy(lines: Path, file: Path) -> None:
    """Copy the embeddings of a file of JSON lines into one of numpy's, in the same order. A row that could not be
    embedded has NaN there."""
    rows = rows_of(lines)
    size = next((len(row["embedding"]) for row in rows if "embedding" in row), 0)
    vectors = np.asarray([row.get("embedding", [np.nan] * size) for row in rows], np.float32).reshape(len(rows), size)
    fresh = file.with_name(file.name + ".partial")
    with fresh.open("wb") as stream:
        np.save(stream, vectors)
    fresh.replace(file)


def without_embeddings(lines: Path) -> None:
    """Take the embeddings out of a file of JSON lines, which keeps its ids and why a row has none."""
    rows = [{name: value for name, value in row.items() if name != "embedding"} for row in rows_of(lines)]
    write_whole(lines, "".join(json_line(row) + "\n" for row in rows))
