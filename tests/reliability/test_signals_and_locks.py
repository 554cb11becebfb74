"""SIGTERM outside the loop is one line and exit code 75; a second run in a workdir is refused, unless the first has died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import unimodal.command
import unimodal.command.runs
from unimodal.command.stopping import stoppable
from unimodal.errors import Stopped, UsageError
from unimodal.hosts.rendezvous import as_one
from unimodal.training.alone import FILE_NAME, alone


def test_sigterm_in_the_final_evaluation_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(_arguments: Any, _program: str) -> int:
        with as_one(None), unimodal.command.runs.mendable(), stoppable("in the final evaluation"):
            try:
                signal.raise_signal(signal.SIGTERM)
            except Exception:  # whatever evaluates must not take it for an error of its own
                pytest.fail("it was caught")
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(unimodal.command.runs, "run", evaluate)
    assert unimodal.command.main(["launch.py", "train"]) == 75
    assert capsys.readouterr().err == "error: stopped in the final evaluation; run the same command to go on\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_inner_place_is_named() -> None:
    with pytest.raises(Stopped, match="inner"), stoppable("outer"), stoppable("inner"):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped, match="outer"), stoppable("outer"):
        with stoppable("inner"):
            pass
        signal.raise_signal(signal.SIGTERM)


HOLD = """
import sys, time
from unimodal.training.alone import alone
with alone(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        line = rf"is in use by process {first.pid} on \S+ since .*; wait until that run has ended, or choose another"
        with pytest.raises(UsageError, match=line), alone(tmp_path):
            pytest.fail("both hold it")
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert str(first.pid) in (tmp_path / FILE_NAME).read_text()
    with alone(tmp_path):
        assert str(os.getpid()) in (tmp_path / FILE_NAME).read_text()
    with alone(tmp_path):
        pass


def test_a_workdir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write in workdir .*Not a directory"), alone(tmp_path / "file" / "run"):
        pytest.fail("there is nothing to hold")
