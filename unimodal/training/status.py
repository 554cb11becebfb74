"""Tells those outside what a run is doing: status.json as a heartbeat, a line when a step takes too long, last words."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from etils import epath

from unimodal.storage import is_remote, write_whole

STATUS, LAST_WORDS, STACKS = "status.json", "last_words.json", "stacks.txt"
TRAINING, WAITING, COMPILING = "training", "waiting for data", "compiling"
_TIMED = (TRAINING, WAITING)  # phases of a step, whose usual time is known
_TIMES_LONGER = 10.0  # than the median step: then something is said
_AT_LEAST = 60.0  # seconds before anything is said
_MOST_IDS = 1024


class Status:
    """Writes WORKDIR/status.json every `beat` seconds, from a thread of its own, so that it is written in a hang, too.

    The main thread says what it does by `now`. A step that takes ten times the median, and a minute at least, is told by
    one line, and where all threads are then is in WORKDIR/stacks.txt. If the block ends in an error, WORKDIR/last_words.json
    keeps it with the step, its tasks and their examples' ids. Process 0 writes the files by these names; those of process
    i end in .i. A disk that takes nothing is left alone: status is a view, and what must be kept fails by itself.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        steps: int,
        *,
        process: int = 0,
        tell: Callable[[str], None] = lambda text: print(f"warning: {text}", file=sys.stderr, flush=True),
        beat: float | None = None,
        patience: float = _AT_LEAST,
    ) -> None:
        self._workdir, self._steps, self._tell, self._patience = epath.Path(workdir), steps, tell, patience
        self._process = process
        self._suffix = f".{process}" if process else ""
        self._beat = beat or (60.0 if is_remote(workdir) else 5.0)
        self._doing: tuple[int, str, Sequence[str], float] = (0, "starting", (), time.monotonic())
        self._ids: Mapping[str, Any] = {}
        self._took: deque[float] = deque(maxlen=101)  # seconds of the last steps
        self._seen: set[tuple[str, ...]] = set()  # sets of tasks whose step has been compiled
        self._step_began: tuple[int, float] | None = None
        self._complained = -1  # the step that was complained of
        self._started = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="status", daemon=True)

    def now(self, step: int, phase: str, tasks: Sequence[str] = (), ids: Mapping[str, Any] | None = None) -> None:
        """The main thread turns to `phase` of step number `step` (counted from 1). ids: of each task's examples."""
        at = time.monotonic()
        if phase == WAITING:
            # Only what lies between two neighbouring steps is the time of a step, and not an evaluation between them.
            if self._step_began is not None and self._step_began[0] == step - 1 and self._doing[1] == TRAINING:
                self._took.append(at - self._step_began[1])
            self._step_began, self._ids = (step, at), {}
        elif phase == TRAINING:
            self._ids = ids or {}
            if tuple(tasks) not in self._seen:
                self._seen.add(tuple(tasks))
                phase = COMPILING
        self._doing = step, phase, tasks, at

    def __enter__(self) -> Status:
        if self._process == 0:
            with contextlib.suppress(OSError):
                (self._workdir / LAST_WORDS).unlink(missing_ok=True)  # of a run before this one
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(timeout=10.0)
        if isinstance(error, Exception):
            self._last_words(error)
        step, _phase, tasks, _since = self._doing
        ending = "trained" if kind is None else ("failed" if isinstance(error, Exception) else "interrupted")
        self._doing = step, ending, tasks, time.monotonic()
        self._write()

    def _watch(self) -> None:
        self._write()
        while not self._ended.wait(self._beat):
            self._write()
            self._complain()

    def _facts(self) -> dict[str, Any]:
        step, phase, tasks, since = self._doing
        median = self._median()
        return {
            "phase": phase,
            "phase_seconds": round(time.monotonic() - since, 1),
            "step": step,
            "steps": self._steps,
            "tasks": list(tasks),
            "median_step_seconds": None if median is None else round(median, 4),
            "process": self._process,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _spelled(self._started),
            "written": _spelled(time.time()),
        }

    def _write(self) -> None:
        if self._process == 0:
            with contextlib.suppress(Exception):  # whatever a bucket's client raises
                write_whole(self._workdir / STATUS, json.dumps(self._facts(), indent=1) + "\n")

    def _median(self) -> float | None:
        took = sorted(self._took)
        return took[len(took) // 2] if len(took) >= 5 else None

    def _complain(self) -> None:
        (step, phase, tasks, _since), median, began = self._doing, self._median(), self._step_began
        if phase not in _TIMED or median is None or began is None or self._complained == step:
            return
        seconds = time.monotonic() - began[1]
        if seconds < max(self._patience, _TIMES_LONGER * median):
            return
        self._complained = step
        where = self._workdir / (STACKS + self._suffix)
        said = ""
        if not is_remote(self._workdir):
            with contextlib.suppress(OSError), open(where, "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
                said = f"; where every thread is: {where}"
        whose = f" of {', '.join(tasks)}" if tasks else ""
        self._tell(
            f"process {self._process}: step {step}{whose} has taken {seconds:.0f} s so far, {phase}; the median is {median:.3g} s{said}"
        )

    def _last_words(self, error: Exception) -> None:
        ids = {name: [str(each) for each in list(found)[:_MOST_IDS]] for name, found in self._ids.items()}
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        words = {**self._facts(), "error": f"{type(error).__name__}: {error}", "ids": ids, "traceback": lines}
        with contextlib.suppress(Exception):
            write_whole(self._workdir / (LAST_WORDS + self._suffix), json.dumps(words, indent=1) + "\n")


def _spelled(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
