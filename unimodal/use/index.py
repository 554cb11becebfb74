"""A searchable set of embeddings in a folder: vectors that are mapped from disk, what they are of, and, when there are many,
an approximate index over them (usearch).

| file | what |
|---|---|
| `about.json` | the size of a vector, the model that made them, how many there are, and, while some are added, how many were before |
| `vectors.f32` | float32 [rows, size], of unit length, one after another |
| `rows.jsonl` | one line for each: its `id`, and the modality that it was read as |
| `graph.usearch` | nearest neighbours by HNSW (Malkov 2018), from `EXACT` rows on; made again where rows have come |
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unimodal.errors import UsageError
from unimodal.storage import write_whole
from unimodal.use.inputs import Entry
from unimodal.use.output import json_line

EXACT = 50_000
"""Rows up to which all are compared: a product of that size takes a few milliseconds."""
_BLOCK = 1 << 24  # bytes of rows.jsonl that are looked at together


@dataclasses.dataclass(frozen=True)
class Index:
    """An index as it lies on disk. Nothing is read before it is asked for."""

    folder: Path  # that holds it
    size: int  # of a vector
    rows: int  # vectors that are whole
    made_by: Mapping[str, Any]  # model, step, task, average and dtype, as far as they are known
    begun: int | None = None  # vectors before those that are being added, or were until a kill; None: all are added

    def left(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries that are still to add, where a command was killed that had added some of them."""
        first = self.rows if self.begun is None else self.begun
        done = Counter(self.row(place)["id"] for place in range(first, self.rows))
        for entry in entries:
            if done[entry.id]:
                done[entry.id] -= 1
            else:
                yield entry

    def check(self, made_by: Mapping[str, Any]) -> None:
        """Raises UsageError for a model other than the one that made the vectors, as far as the index says which did."""
        # An index of an earlier version says less, and has no task where none was given.
        unknown = {"task"} if None in (self.made_by.get("task"), made_by.get("task")) else set()
        said = {name: value for name, value in self.made_by.items() if name not in unknown}
        if other := [name for name in said if _plain(name, said[name]) != _plain(name, made_by.get(name))]:
            theirs, ours = (_told({name: one.get(name) for name in other}) for one in (said, made_by))
            raise UsageError(f"{self.folder} was made by {theirs}, not {ours}; take the same, or another index")

    @cached_property
    def vectors(self) -> np.ndarray:
        """float32 [rows,size], mapped from the file."""
        if not self.rows:
            return np.zeros((0, self.size), np.float32)
        return np.memmap(self.folder / "vectors.f32", np.float32, mode="r", shape=(self.rows, self.size))

    def row(self, place: int) -> dict[str, Any]:
        """What the vector at a place is of. Raises UsageError for a line that is none."""
        content, ends = self._told
        start = int(ends[place - 1]) + 1 if place else 0
        try:
            return dict(json.loads(bytes(content[start : int(ends[place])])))
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{self.folder / 'rows.jsonl'}: line {place + 1} is damaged; make the index again"
            ) from error

    @cached_property
    def _told(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of rows.jsonl, mapped, and where each of its lines ends."""
        path = self.folder / "rows.jsonl"
        content = np.memmap(path, np.uint8, mode="r")
        blocks = range(0, len(content), _BLOCK)
        ends = np.concatenate([np.flatnonzero(content[i : i + _BLOCK] == ord("\n")) + i for i in blocks])
        if len(ends) < self.rows:
            raise UsageError(f"{path} has {len(ends)} lines for {self.rows} vectors; make the index again")
        return content, ends

    def nearest(self, query: np.ndarray, top: int, *, exact: bool = False) -> list[dict[str, Any]]:
        """The rows whose inner product with the query is largest, best first: what they are of, `score` and `row`, their place.

        exact: compare all, however many. Raises UsageError for a query of another size.
        """
        query = np.asarray(query, np.float32).reshape(-1)
        if len(query) != self.size:
            raise UsageError(f"{self.folder} holds vectors of {self.size} numbers, but the query has {len(query)}")
        top = min(top, self.rows)
        if self.rows > EXACT and not exact:
            found = self.graph.search(query, top)
            places, scores = np.asarray(found.keys), 1.0 - np.asarray(found.distances)
        else:
            all_scores = self.vectors @ query
            places = np.argpartition(-all_scores, top - 1)[:top] if top else np.zeros(0, np.int64)
            places = places[np.lexsort((places, -all_scores[places]))]
            scores = all_scores[places]
        found = [(int(place), round(float(score), 6)) for place, score in zip(places, scores, strict=True)]
        return [{**self.row(place), "score": score, "row": place} for place, score in found]

    @cached_property
    def graph(self) -> Any:
        """The approximate index, made now if rows have come since it was. Raises UsageError without usearch."""
        try:
            from usearch.index import Index as Graph
        except ImportError:
            raise UsageError(
                f"searching {self.rows:,} vectors takes usearch: pip install 'unimodal[search]', or --exact"
            ) from None
        path = self.folder / "graph.usearch"
        if path.exists():
            graph = Graph.restore(str(path), view=True)
            if graph is not None and len(graph) == self.rows:
                return graph
        graph = Graph(
            ndim=self.size, metric="ip", dtype="f32", connectivity=16, expansion_add=128, expansion_search=128
        )
        # On one thread, so that the same rows make the same graph: with several, a row is now and then cut off from all.
        graph.add(np.arange(self.rows), np.asarray(self.vectors), threads=1)
        fresh = path.with_suffix(".partial")
        graph.save(str(fresh))
        os.replace(fresh, path)
        return graph


def open_index(folder: str | Path) -> Index:
    """An index that is there. Raises UsageError for a folder that is none, or is damaged."""
    folder = Path(folder)
    about = folder / "about.json"
    if not about.exists():
        raise UsageError(f"{folder} is no index: it has no about.json; unimodal index makes one")
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        size, rows = int(said["size"]), int(said["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{about} is damaged ({error}); make the index again") from error
    if (folder / "vectors.f32").stat().st_size < 4 * size * rows:
        raise UsageError(
            f"{folder / 'vectors.f32'} is shorter than {rows} vectors of {size} numbers; make the index again"
        )
    return Index(folder, size, rows, said.get("made_by", {}), said.get("begun"))


def append(
    folder: str | Path, rows: Iterable[Mapping[str, Any]], made_by: Mapping[str, Any], every: int = 256
) -> Index:
    """Add embeddings (`id`, `embedding` and whatever else JSON holds) to an index, which is made if it is not there.

    What was added is counted only when it is whole on disk, so that a kill loses at most `every` rows; `Index.left` tells what
    is still to add. Raises UsageError for vectors of another size, or of another model.
    """
    folder = Path(folder)
    there = open_index(folder) if (folder / "about.json").exists() else None
    if there is not None:
        there.check(made_by)
        made_by = there.made_by  # of the rows that are there, no more is known
    folder.mkdir(parents=True, exist_ok=True)
    size, count = (0, 0) if there is None else (there.size, there.rows)
    begun = count if there is None or there.begun is None else there.begun
    waiting: list[Mapping[str, Any]] = []
    for row in rows:
        if size and len(row["embedding"]) != size:
            raise UsageError(f"{folder} holds vectors of {size} numbers, but {row['id']} has {len(row['embedding'])}")
        size = size or len(row["embedding"])
        waiting.append(row)
        if len(waiting) == every:
            count = _flush(folder, waiting, size, count)
            _tell(folder, dict(size=size, rows=count, made_by=dict(made_by), begun=begun))
            waiting = []
    if waiting:
        count = _flush(folder, waiting, size, count)
    if not size:
        raise UsageError(f"not one input could be embedded, so {folder} is not an index")
    _tell(folder, dict(size=size, rows=count, made_by=dict(made_by)))
    return Index(folder, size, count, made_by)


def _flush(folder: Path, rows: Sequence[Mapping[str, Any]], size: int, count: int) -> int:
    """Write rows behind the first `count`, cutting off what a kill may have left there; returns how many there are."""
    vectors = np.asarray([row["embedding"] for row in rows], np.float32)
    with (folder / "vectors.f32").open("ab") as stream:
        stream.truncate(4 * size * count)
        stream.write(vectors.tobytes())
    path = folder / "rows.jsonl"
    if count and (kept := _line_ends(path, count)) < path.stat().st_size:
        os.truncate(path, kept)
    with path.open("a" if count else "w", encoding="utf-8") as stream:
        for row in rows:
            told = {name: value for name, value in row.items() if name != "embedding"}
            stream.write(json_line(told) + "\n")
    return count + len(rows)


def _tell(folder: Path, about: Mapping[str, Any]) -> None:
    """Write about.json, once what it counts is on disk."""
    write_whole(folder / "about.json", json.dumps(about, indent=2))


def _line_ends(path: Path, count: int) -> int:
    """The byte behind the first `count` lines."""
    with path.open("rb") as stream:
        return sum(len(line) for line, _ in zip(stream, range(count), strict=False))


def _plain(name: str, value: Any) -> Any:
    return Path(value).resolve() if name == "model" and value is not None else value


def _told(made_by: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in made_by.items()) or "nothing known"
