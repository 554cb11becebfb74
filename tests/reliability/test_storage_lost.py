"""A disk that is full, gone or read-only ends a run in one line; what was saved stays, and the same command goes on."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from orbax.checkpoint._src.multihost import multihost

import unimodal.command
import unimodal.command.runs
from unimodal.errors import StorageError
from unimodal.storage import write_whole
from unimodal.training.checkpoint import saved_steps
from unimodal.training.events import Events
from unimodal.training.metrics import MetricsWriter, read_metrics

quiet = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of a run that nothing befell."""
    return toy.run(tmp_path_factory.mktemp("whole"), steps=8)[1]


@pytest.fixture(autouse=True)
def threads_that_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a save that failed waits five minutes for the rest of it; the program ends without. A minute, as a busy
    machine may take some seconds for a save that succeeds."""
    monkeypatch.setattr(multihost, "coordination_timeout", lambda: 60)


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the kernel refuses the write, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def exchange(one: Path, other: Path) -> None:
    """Swap two paths in one step, as a mount is lost: between two renames, a thread that saves could make a folder."""
    rename, here, swap = ctypes.CDLL(None, use_errno=True).renameat2, -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), swap):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one))


@quiet
@pytest.mark.parametrize("room", [100, 1_000, 10_000])  # the last holds all but the arrays
def test_a_full_disk_is_one_line_and_the_run_goes_on(
    room: int, whole: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as stack:

        def before(k: int) -> None:
            if k == 3:
                stack.enter_context(files_up_to(room))

        with pytest.raises(StorageError) as caught:
            toy.run(tmp_path, steps=8, before=before)
    text = str(caught.value)
    assert text.startswith("cannot write ") and ": File too large" in text and "run the same command to go on" in text
    assert "\n" not in text and len(text) < 300
    assert not [r for r in caplog.records if r.exc_info and r.levelno >= logging.ERROR]
    assert "Traceback" not in capfd.readouterr().err
    left = saved_steps(tmp_path)
    assert left and left[-1] in (2, 3)
    assert toy.run(tmp_path, steps=8)[1] == whole
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 9))


@quiet
def test_checkpoints_that_vanish_are_one_line(whole: str, tmp_path: Path) -> None:
    gone: list[int] = []

    def before(k: int) -> None:
        if k == 3 and not gone:
            gone.append(k)
            (tmp_path / "elsewhere").write_text("no folder")
            exchange(tmp_path / "checkpoints", tmp_path / "elsewhere")

    with pytest.raises(StorageError, match=r"cannot write checkpoints in \S+: .*; there is no whole one: mend this"):
        toy.run(tmp_path, steps=8, before=before)
    (tmp_path / "checkpoints").unlink()
    assert toy.run(tmp_path, steps=8)[1] == whole


@quiet
@pytest.mark.parametrize("every", [1, 4])  # amid a save, and between two
@pytest.mark.parametrize("empty", [True, False])  # what lies below a mount, or nothing
def test_a_workdir_that_is_gone_is_one_line(every: int, empty: bool, whole: str, tmp_path: Path) -> None:
    run, gone = tmp_path / "run", tmp_path / "gone"

    def before(k: int) -> None:
        if k == 6 and not gone.exists():
            while every == 4 and not saved_steps(run):
                time.sleep(0.01)
            if empty:
                gone.mkdir()
                exchange(run, gone)
            else:
                run.rename(gone)

    with pytest.raises(StorageError, match="it is not the folder that it was; is a mount lost") as caught:
        toy.run(run, steps=8, checkpoint_every=every, before=before)
    assert "\n" not in str(caught.value)
    assert saved_steps(gone)[-1] >= 4
    assert not saved_steps(run)  # nothing is left where nobody looks for it
    assert toy.run(gone, steps=8)[1] == whole  # mounted elsewhere: threads of the store may still be busy here


def test_the_program_says_it_and_exits_with_74(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_arguments: Any, _program: str) -> int:
        with unimodal.command.runs.mendable():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(unimodal.command.runs, "run", full)
    assert unimodal.command.main(["launch.py", "train"]) == 74
    assert capsys.readouterr().err == "error: No space left on device; mend this, and run the same command to go on\n"


def test_events_end_and_nobody_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = Events(tmp_path, None)
    threads = threading.active_count()
    with files_up_to(100):
        for step in range(3000):  # more than any queue or buffer holds
            events.add("toy/loss", 1.0, step)
        events.flush()
    events.close()
    assert capsys.readouterr().err.count("warning: no more TensorBoard events: File too large") == 1
    assert threading.active_count() == threads


def test_metrics_that_do_not_fit_leave_no_half_line_behind(tmp_path: Path) -> None:
    with contextlib.closing(MetricsWriter(tmp_path, resume_step=0)) as writer:
        writer.write(1, "toy", {"loss": 1.0})
        size = (tmp_path / "metrics.jsonl").stat().st_size
        with (
            files_up_to(size + 10),
            pytest.raises(StorageError, match="cannot write metrics of step 2 .*File too large"),
        ):
            writer.write(2, "toy", {"loss": 1.0})
    with contextlib.closing(MetricsWriter(tmp_path, resume_step=1)) as writer:
        writer.write(2, "toy", {"loss": 0.5})
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 0.5)]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_whole(path, "before")
    with files_up_to(10), pytest.raises(OSError, match="results.json"):
        write_whole(path, "x" * 1000)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]
    with pytest.raises(IsADirectoryError):
        (tmp_path / "folder").mkdir()
        write_whole(tmp_path / "folder", "x")
