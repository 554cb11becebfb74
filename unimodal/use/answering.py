"""Records → answers: read on threads, in batches of a few fixed shapes, an error for each record that cannot be read."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from unimodal.answers import Answer, Asked
from unimodal.errors import UsageError
from unimodal.sharding import batch_parts, from_local_rows
from unimodal.use.inputs import Entry, modalities

READERS = 4  # threads that read files and decode pictures and sounds


@dataclass
class Asking:
    """A loaded model with a question. Compiled functions stay for later batches."""

    loaded: Any  # a `Loaded`
    asked: Asked = Asked()  # options of the question
    task: str | None = None  # None: the only one that reads what comes
    gives: str | None = None  # None: the first of the task's answers that reads it
    batch_size: int = 32  # inputs at a time
    answered_by: set[str] = field(default_factory=set)  # tasks that have answered
    _answers: dict[str, Sequence[Answer]] = field(default_factory=dict)  # by task
    _compiled: dict[Any, Any] = field(default_factory=dict)  # by answer

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, but is {self.batch_size}")
        names = list(self.loaded.tasks) if self.task is None else [self.loaded.task(self.task)]
        refused: list[UsageError] = []
        for name in names:
            try:
                self._answers[name] = self._of(name)
            except UsageError as error:
                refused.append(error)
        if len(refused) == len(names):  # what is asked is wrong, and not an input
            raise refused[0]

    def _of(self, task: str) -> Sequence[Answer]:
        """The answers of a task that give what is asked for. Raises UsageError where there is none."""
        offered = self.loaded.answers(task, self.asked)
        found = [a for a in offered if self.gives in (None, a.gives)]
        if not found:
            there = ", ".join(dict.fromkeys(a.gives for a in offered)) or "nothing"
            raise UsageError(f"the task {task!r} gives no {self.gives or 'answer'}, but {there}")
        return found

    def reads(self, modality: str) -> bool:
        """True if some answer reads this, such as "image" or "image+text"."""
        return any(answer.reads == modality for found in self._answers.values() for answer in found)

    def answer(self, reads: Sequence[str]) -> Answer:
        """The answer for an input of one of these modalities. Raises UsageError where there is none, or several."""
        able = {name: [a for a in found if a.reads in reads] for name, found in self._answers.items()}
        able = {name: found for name, found in able.items() if found}
        if len(able) > 1:
            raise UsageError(f"several tasks read {' or '.join(reads)}: say which, --task={'|'.join(able)}")
        if able:
            return next(iter(able.values()))[0]
        there = " and ".join(dict.fromkeys(a.reads for found in self._answers.values() for a in found))
        who = f"the task {next(iter(self._answers))!r} reads" if len(self._answers) == 1 else "the tasks read"
        asked = f" to give a{'n' if str(self.gives)[:1] in 'aeiou' else ''} {self.gives}" if self.gives else ""
        raise UsageError(f"{who} {there}{asked}, not {' or '.join(reads) or 'this'}")

    def run(self, answer: Answer, rows: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Run the model on rows. They are filled up to a power of two, so that few shapes are compiled, and to what the mesh
        divides."""
        model, mesh = self.loaded.model, self.loaded.mesh
        parts = batch_parts(mesh)
        size = -(-min(self.batch_size, 1 << (len(rows) - 1).bit_length()) // parts) * parts
        batch = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
        batch = {name: np.concatenate([v, np.repeat(v[-1:], size - len(v), axis=0)]) for name, v in batch.items()}
        key = id(answer)
        if key not in self._compiled:
            once = {} if answer.once is None else jax.jit(answer.once)(model)
            self._compiled[key] = jax.jit(answer.predict), once, answer
            self.answered_by |= {name for name, found in self._answers.items() if any(a is answer for a in found)}
        predict, once, _ = self._compiled[key]
        with jax.set_mesh(mesh):
            arrays = {**from_local_rows(batch, mesh), **once}
            found = {name: np.asarray(value) for name, value in predict(model, arrays).items()}
        return [{name: value[i] for name, value in found.items()} for i in range(len(rows))]


@dataclass
class Askings:
    """The last questions of a model, so that one that comes again finds its functions compiled."""

    most: int = 16  # questions that stay
    _kept: OrderedDict[Any, Asking] = field(default_factory=OrderedDict)

    def of(self, loaded: Any, asked: Asked, task: str | None, gives: str | None, batch_size: int) -> Asking:
        """A question as it was asked before, or a new one. Raises UsageError for one that the model has no answer to."""
        key = task, gives, asked, batch_size
        asking = self._kept.pop(key, None) or Asking(loaded, asked, task, gives, batch_size)
        self._kept[key] = asking
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return asking


Read = tuple[str, Answer, list[Mapping[str, np.ndarray]]]


def answered(asking: Asking, entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    """One answer for each entry, in order: its `id`, and what the model says, or an `error` of one line."""
    waiting = iter(entries)
    with ThreadPoolExecutor(READERS) as pool:
        take = lambda: [pool.submit(_read, asking, e) for e in itertools.islice(waiting, asking.batch_size)]  # noqa: E731
        ahead = take()
        while ahead:
            here, ahead = ahead, take()  # the next batch is read while this one is on the device
            yield from _answers(asking, here)


def _read(asking: Asking, entry: Entry) -> Read | dict[str, Any]:
    """The arrays of an entry, or why there are none."""
    try:
        if entry.reads:
            answer = asking.answer(entry.reads)
            record = entry.read()
        else:
            record = entry.read()
            answer = asking.answer(modalities(record))
        record = {**record, "id": entry.id}
        return entry.id, answer, [answer.row(record)] if answer.rows is None else list(answer.rows(record))
    except UsageError as error:
        return {"id": entry.id, "error": _line(error).removeprefix(f"{entry.id}: ")}
    except OSError as error:
        return {"id": entry.id, "error": f"it cannot be read: {error.strerror or _line(error)}"}


def _answers(asking: Asking, futures: Sequence[Future[Any]]) -> Iterator[dict[str, Any]]:
    read = [future.result() for future in futures]
    made: dict[int, dict[str, Any]] = {i: one for i, one in enumerate(read) if isinstance(one, dict)}
    groups: dict[Any, list[tuple[int, Mapping[str, np.ndarray]]]] = {}
    for i, one in enumerate(read):
        for row in one[2] if isinstance(one, tuple) else ():
            shapes = tuple(np.shape(value) for value in row.values())
            groups.setdefault((id(one[1]), shapes), []).append((i, row))
    found: dict[int, list[dict[str, np.ndarray]]] = {}
    for rows in groups.values():
        answer: Answer = read[rows[0][0]][1]
        for some in (rows[k : k + asking.batch_size] for k in range(0, len(rows), asking.batch_size)):
            for (i, _), part in zip(some, asking.run(answer, [row for _, row in some]), strict=True):
                found.setdefault(i, []).append(part)
    for i, parts in found.items():
        name, answer, _ = read[i]
        try:
            made[i] = {"id": name, **answer.say(parts[0] if answer.join is None else answer.join(parts))}
        except UsageError as error:
            made[i] = {"id": name, "error": _line(error)}
    return iter([made[i] for i in range(len(read))])


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
