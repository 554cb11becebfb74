"""Numbers kept: metrics.jsonl (one object per logged step and task), TensorBoard events, and the verdict on a result.

The JSON lines are the record; the events are a view of it. Both are written as they come, so that a run which is killed
keeps all it had logged, and a run which resumes at step k has every step once.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath

from unimodal.errors import UsageError
from unimodal.storage import Mirror, is_remote, one_line, writing
from unimodal.training.events import Events

FILE_NAME = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
REMOTE_SECONDS = 30.0  # between copies to a bucket, where nothing can be appended
_RESERVED = frozenset({"step", "task", "nonfinite"})

Verdict = Literal["better", "worse", "equal", "unknown", "failed"]


class MetricsWriter:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard events under `workdir/tensorboard`.

    `resume_step` = k removes what was logged after step k (a fresh run passes 0); None keeps all that is there and
    appends, which is what an evaluation of a finished run wants. A torn last line is always removed. With
    `enabled=False`, as on every host but the first, nothing is read or written. A workdir in a bucket gets whole copies,
    every half minute and at `sync`.

    Raises UsageError if the workdir cannot be written, or holds a metrics.jsonl that is not one.
    """

    def __init__(self, workdir: str | os.PathLike[str], enabled: bool = True, resume_step: int | None = None) -> None:
        self._file = None
        self._events = None
        self._mirror = None
        self._copied = time.monotonic()
        self._folder = workdir
        if not enabled:
            return
        try:
            if is_remote(workdir):
                self._mirror = Mirror(workdir)
                self._mirror.fetch(FILE_NAME)
            folder = Path(workdir) if self._mirror is None else self._mirror.local
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / FILE_NAME
            _mend(path, resume_step)
            # Unbuffered and appending: one line is one write, so a kill can tear only the line being written.
            self._file = path.open("ab", buffering=0)
            self._events = Events(folder / TENSORBOARD_FOLDER, None if resume_step is None else resume_step + 1)
        except OSError as error:
            self.close()
            raise UsageError(f"cannot write metrics in {workdir}: {one_line(error)}; choose another workdir") from error

    def write(self, step: int, task: str, metrics: Mapping[str, Any]) -> None:
        """Log `metrics` (anything `float()` takes) of one task at one step, as one line.

        JSON has no NaN: a value that is not finite is written as null and its name listed under "nonfinite".
        Raises ValueError if a metric is called "step", "task" or "nonfinite", and StorageError if the disk does not take it.
        """
        if self._file is None:
            return
        if clash := _RESERVED & metrics.keys():
            raise ValueError(f"metric name {sorted(clash)[0]!r} of task {task!r} is reserved; choose another")
        values = {name: float(value) for name, value in metrics.items()}
        record: dict[str, Any] = {"step": int(step), "task": task}
        record |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        if nonfinite := [name for name, value in values.items() if not math.isfinite(value)]:
            record["nonfinite"] = nonfinite
        with writing(f"metrics of step {step} in {self._folder}", "; make room, and run the same command to go on"):
            rest = _line(record)
            while rest:  # a disk that is nearly full takes a part, and refuses the next
                rest = rest[self._file.write(rest) :]
        if self._events is not None:
            for name, value in values.items():
                # The event writer would warn of every NaN, and the charts gain nothing: the JSON tells of it.
                if math.isfinite(value):
                    self._events.add(f"{task}/{name}", value, int(step))
        if self._mirror is not None and time.monotonic() - self._copied > REMOTE_SECONDS:
            self._copied = time.monotonic()
            self._mirror.push()

    def sync(self) -> None:
        """See to it that what was written is in the workdir, before a checkpoint says that the run got so far."""
        if self._mirror is not None:
            if self._events is not None:
                self._events.flush()
            self._mirror.sync()

    def close(self) -> None:
        """Flush and close; closing twice is harmless."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._mirror is not None:
            self._mirror.close()
            self._mirror = None


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All records of `workdir/metrics.jsonl` in order; [] if there is none. A value that was not finite is None.

    A last line torn by a crash is left out. Raises UsageError if any other line is no record.
    """
    path = epath.Path(workdir) / FILE_NAME
    if not path.exists():
        return []
    return [record for _, record in _records(path)]


def curves(records: Iterable[Mapping[str, Any]], name: str = "loss") -> dict[str, list[tuple[int, float]]]:
    """The (step, value) curve of one metric for each task that logged it; values that were not finite are NaN."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if name in record:
            value = record[name]
            found.setdefault(record["task"], []).append((record["step"], math.nan if value is None else value))
    return found


def finite_only(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record as JSON can hold it: a number that is not finite is None, and its dotted name listed under "nonfinite"."""
    missing: list[str] = []

    def cleaned(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: cleaned(each, f"{name}.{key}" if name else str(key)) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(each, f"{name}.{place}") for place, each in enumerate(value)]
        if isinstance(value, float | np.floating) and not math.isfinite(value):
            missing.append(name)
            return None
        return value

    found = cleaned(record, "")
    return {**found, "nonfinite": missing} if missing else found


def verdict(value: float | None, baseline: float | None, higher_is_better: bool) -> Verdict:
    """Compare a result with its baseline: "better", "worse" or "equal"; "failed" if it is not finite, and "unknown" if
    there is no result or nothing to compare it with."""
    if value is not None and not math.isfinite(value):
        return "failed"
    if value is None or baseline is None or math.isnan(baseline):
        return "unknown"
    if value == baseline:
        return "equal"
    return "better" if (value > baseline) == higher_is_better else "worse"


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _records(path: Path | epath.Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each whole line and what it says; stops before a torn last line."""
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not (isinstance(record, dict) and isinstance(record["step"], int) and isinstance(record["task"], str)):
                raise ValueError("not an object with a step and a task")
        except (ValueError, KeyError) as error:
            if number == len(lines):
                return
            raise UsageError(
                f"{path} line {number} is not a metrics record; move the file away or use another workdir"
            ) from error
        yield line, record


def _mend(path: Path, resume_step: int | None) -> None:
    """Drop a torn last line and what was logged after `resume_step`, in one atomic replacement of the file."""
    if not path.exists():
        return
    keep = [line + b"\n" for line, record in _records(path) if resume_step is None or record["step"] <= resume_step]
    _replace_if_changed(path, b"".join(keep))


def _replace_if_changed(path: Path, content: bytes) -> None:
    if path.read_bytes() == content:
        return
    fresh = path.with_name(path.name + ".tmp")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
