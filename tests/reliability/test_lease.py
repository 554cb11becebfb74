"""A workdir in a bucket is held by one run, told by whether a file changes; a dead holder's place is free after a while."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from unimodal.errors import UsageError
from unimodal.training import alone as alone_module
from unimodal.training.alone import alone
from unimodal.training.lease import Lease

QUICK: dict[str, Any] = dict(beat=0.05, patience=5.0, settle=0.05)
SHORT: dict[str, Any] = {**QUICK, "patience": 0.3}


@pytest.fixture
def path(tmp_path: Path) -> epath.Path:
    """A folder stands in for the bucket: the lease asks for nothing but to read, write and delete a file."""
    return epath.Path(tmp_path / ".lock")


def test_a_second_run_is_refused_while_the_first_lives(path: epath.Path) -> None:
    told: list[str] = []
    with Lease(path, **QUICK):
        time.sleep(0.2)
        began = time.monotonic()
        with pytest.raises(UsageError, match=rf"{path.parent} is in use by process \d+ on \S+; wait until") as caught:
            Lease(path, tell=told.append, **QUICK).__enter__()
        assert time.monotonic() - began < 4 and "\n" not in str(caught.value)
        assert len(told) == 1 and "looking for 5 s whether that run is alive" in told[0]
    assert not path.exists()
    with Lease(path, **QUICK):  # and free again at once
        pass


@pytest.mark.parametrize("left", ['{"token": "x", "host": "gone", "pid": 7}', "", "no JSON", "[]"])
def test_what_a_crashed_run_has_left_is_free_after_a_while(left: str, path: epath.Path) -> None:
    path.write_text(left)
    began = time.monotonic()
    with Lease(path, tell=lambda _: None, **SHORT) as lease:
        assert time.monotonic() - began >= SHORT["patience"]
        assert json.loads(path.read_text())["token"] == lease._mine["token"]


def test_of_several_that_begin_at_once_one_has_it(path: epath.Path) -> None:
    start, done, inside, refused = threading.Barrier(6), threading.Event(), [], []

    def run() -> None:
        start.wait()
        try:
            with Lease(path, tell=lambda _: None, **{**QUICK, "settle": 1.0}):
                inside.append(1)
                done.wait(30)
        except UsageError:
            refused.append(1)
            if len(refused) == 5:
                done.set()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 5)


def test_who_was_silent_and_is_replaced_ends(path: epath.Path) -> None:
    ended: list[str] = []
    with Lease(path, ended=ended.append, **QUICK):
        path.write_text('{"token": "other", "host": "elsewhere", "pid": 9}')
        deadline = time.monotonic() + 5
        while not ended and time.monotonic() < deadline:
            time.sleep(0.02)
    assert ended == [f"{path.parent} was taken over by process 9 on elsewhere, as this one was silent for too long"]
    assert json.loads(path.read_text())["token"] == "other"  # it is not ours to remove


def test_clocks_that_jump_change_nothing(path: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(path, **QUICK):
        for jump in (-1e9, 1e9):
            monkeypatch.setattr(time, "time", lambda jump=jump: jump)
            with pytest.raises(UsageError, match="is in use"):
                Lease(path, tell=lambda _: None, **QUICK).__enter__()


def test_a_bucket_s_workdir_is_held_so(path: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone_module, "is_remote", lambda _: True)
    monkeypatch.setattr(alone_module, "Lease", lambda path: Lease(path, **QUICK))
    with alone(path.parent):
        assert json.loads(path.read_text())["beat"] == 2
        with pytest.raises(UsageError, match="is in use by process"), alone(path.parent):
            pytest.fail("both hold it")
    with (
        pytest.raises(UsageError, match=r"cannot write in workdir \S+: No such file or directory"),
        alone("/nowhere/x"),
    ):
        pytest.fail("there is nothing to hold")
