"""Processes find each other, notice who is missing, differs or dies, and stop after the same step."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from unimodal.errors import UsageError
from unimodal.hosts import doctor, lifeline, roll
from unimodal.hosts.facts import code_hash, difference, run_facts
from unimodal.hosts.lifeline import Lifeline
from unimodal.hosts.peer import EXIT_LOST, EXIT_USAGE, LostError
from unimodal.hosts.rendezvous import find_place
from unimodal.hosts.roll import call_the_roll

NAMES = [f"process {number} (host{number})" for number in range(4)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def everywhere(count: int, do: Callable[[int], Any], processes: tuple[int, ...] | None = None) -> list[Any]:
    """What `do(process)` gives or raises in each process, all at the same time."""

    def attempt(process: int) -> Any:
        try:
            return do(process)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(attempt, range(count) if processes is None else processes))


class Run:
    """So many lifelines in one process, and what each was told of a loss."""

    def __init__(self, count: int) -> None:
        self.lost: list[list[tuple[str, int]]] = [[] for _ in range(count)]
        port = free_port()
        self.lines: list[Lifeline] = everywhere(count, lambda process: self.connect(process, count, port))

    def connect(self, process: int, count: int, port: int) -> Lifeline:
        peers = call_the_roll(process, count, "127.0.0.1:1", port, 20)
        return Lifeline(process, count, peers, lambda text, code: self.lost[process].append((text, code)))

    def die(self, process: int) -> None:
        """As the kernel does for the dead: its connections close. And the dead do not talk of it."""
        self.lines[process]._leaving = True
        for peer in self.lines[process]._peers.values():
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)

    def wait_for(self, *processes: int) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not all(self.lost[process] for process in processes):
            time.sleep(0.01)

    def close(self) -> None:
        for line in self.lines:
            line.leave()
        for process in range(len(self.lines)):
            self.die(process)
        for line in self.lines:
            line._thread.join(10)
            for peer in line._peers.values():
                peer.connection.close()


@pytest.fixture
def three() -> Iterator[Run]:
    run = Run(3)
    yield run
    run.close()


def test_all_agree_or_all_hear_who_differs(three: Run) -> None:
    judge = lambda everyone: difference(everyone, NAMES[:3])  # noqa: E731
    assert everywhere(3, lambda p: three.lines[p].agree("first", {"jax": "1"}, judge, 20)) == [None] * 3
    found = everywhere(3, lambda p: three.lines[p].agree("second", {"jax": "2" if p == 1 else "1"}, judge, 20))
    assert {(type(error), str(error)) for error in found} == {
        (UsageError, "process 1 (host1) has jax 2, the others 1"),
    }


def test_who_does_not_answer_is_named(three: Run) -> None:
    judge = lambda everyone: None  # noqa: E731
    found = everywhere(3, lambda p: three.lines[p].agree("devices", {}, judge, 0.5), processes=(0, 1))
    assert all(isinstance(error, LostError) for error in found), found
    assert all("process 2" in str(error) and "did not answer" in str(error) for error in found)


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(roll, "WORD_SECONDS", 0.3)
    port = free_port()
    began = time.monotonic()
    found = everywhere(2, lambda p: call_the_roll(p, 3, "127.0.0.1:1", port, 2.0))
    assert time.monotonic() - began < 10
    for error in found:
        assert isinstance(error, LostError)
        assert "process 2 of 3 did not come within 2 s" in str(error)
    assert "waiting for process 2 of 3\n" in capsys.readouterr().err


def test_all_must_write_and_see_the_same_workdir(
    three: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "SHARED_SECONDS", 0.2)
    monkeypatch.setattr(doctor, "DISK_BYTES", math.inf)
    said: list[str] = []
    own = [tmp_path / name for name in ("shared", "shared", "alone")]
    assert everywhere(3, lambda p: doctor.check_shared(three.lines[p], tmp_path, said.append)) == [None] * 3
    assert len(said) == 1 and said[0].startswith("warning: ") and "GB left in" in said[0]
    found = everywhere(3, lambda p: doctor.check_shared(three.lines[p], own[p], said.append))
    assert {type(error) for error in found} == {UsageError}
    assert {str(error).split(" cannot see in")[0] for error in found} == {three.lines[0].name(2)}
    assert all("what the others wrote: it must be one folder that all hosts share" in str(e) for e in found)
    assert not list(tmp_path.glob("**/.doctor*"))


def test_who_cannot_write_in_the_workdir_is_named(three: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = [tmp_path, tmp_path / "file", tmp_path]
    found = everywhere(3, lambda p: doctor.check_shared(three.lines[p], places[p], lambda _: None))
    assert all("process 1 (" in str(error) and "cannot write in" in str(error) for error in found), found


def test_without_process_0_the_others_say_so() -> None:
    with pytest.raises(LostError, match=r"process 1 cannot reach process 0 at 127.0.0.1:\d+ .*refused"):
        call_the_roll(1, 2, "127.0.0.1:1", free_port(), 0.5)


def test_a_stranger_on_the_port_does_no_harm() -> None:
    port = free_port()

    def come(process: int) -> Any:
        if process == 2:
            for _ in range(100):
                try:
                    with socket.create_connection(("127.0.0.1", port)) as connection:
                        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                        return None
                except OSError:
                    time.sleep(0.02)
        time.sleep(0.3 * process)
        return call_the_roll(process, 2, "127.0.0.1:1", port, 20)

    leader, member, _ = everywhere(3, come)
    assert [peer.process for peer in leader] == [1]
    for peer in [*leader, *member]:
        peer.connection.close()


@pytest.mark.parametrize("dead", [0, 2])
def test_a_death_is_heard_and_named(three: Run, dead: int) -> None:
    three.die(dead)
    alive = [process for process in range(3) if process != dead]
    three.wait_for(*alive)
    for process in alive:
        (text, code) = three.lost[process][0]
        assert text.startswith(f"process {dead} (")
        assert "of 3 has died" in text
        assert code == EXIT_LOST


def test_silence_is_a_death_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(lifeline, "BEAT_SECONDS", 1000.0)
    run = Run(2)
    run.wait_for(0, 1)
    assert "process 1" in run.lost[0][0][0] and "not been heard of" in run.lost[0][0][0]
    run.close()


def test_who_gives_up_says_why(three: Run) -> None:
    three.lines[1].give_up("workdir is full", EXIT_USAGE)
    three.wait_for(0, 2)
    for process in (0, 2):
        assert [(code, text.endswith("gave up: workdir is full")) for text, code in three.lost[process]] == [(2, True)]
    assert three.lost[1] == []


def test_who_leaves_in_good_order_is_not_missed(three: Run) -> None:
    three.lines[2].leave()
    three.die(2)
    time.sleep(0.3)
    assert three.lost == [[], [], []]


@pytest.mark.parametrize("asking", [0, 1])
def test_all_stop_after_the_same_step(three: Run, asking: int) -> None:
    last, started = [0, 0, 0], threading.Barrier(3)

    def loop(process: int) -> int:
        started.wait()
        for step in range(100, 3000):
            if three.lines[process].should_stop(step):
                return step
            if process == asking and step == 150:
                three.lines[process].ask_to_stop()
            last[process] = step
            time.sleep(0.001 * (process + 1))
            while min(last) < step - 3:  # as collectives do: nobody gets far ahead of the slowest
                time.sleep(0.0005)
        return -1

    found = everywhere(3, loop)
    assert len(set(found)) == 1, found
    assert 150 < found[0] < 3000


def test_differences_are_told_in_a_sentence() -> None:
    base = {"code": "a", "jax": "1", "config.seed": "0"}
    assert difference([base] * 4, NAMES) is None
    assert difference([base, {**base, "config.seed": "7"}], NAMES[:2]) == (
        "process 1 (host1) has config.seed 7, process 0 (host0) 0"
    )
    two = [base, {**base, "jax": "2"}, {**base, "jax": "2", "code": "b"}, base]
    assert difference(two, NAMES) == (
        "process 2 (host2) has code b, the others a; process 1 (host1) and process 2 (host2) have jax 2, the others 1"
    )


def test_facts_tell_code_and_config_apart(tmp_path: Path) -> None:
    (tmp_path / "unimodal").mkdir()
    (tmp_path / "launch.py").write_text("x = 1\n")
    (tmp_path / "unimodal" / "a.py").write_text("y = 1\n")
    before = code_hash(tmp_path)
    assert before == code_hash(tmp_path)
    (tmp_path / "unimodal" / "a.py").write_text("y = 2\n")
    assert code_hash(tmp_path) != before
    facts = run_facts(tmp_path, {"mesh": {"data": 2}, "seed": None}, "runs/x")
    assert (facts["config.mesh.data"], facts["config.seed"], facts["workdir"]) == ("2", "null", "runs/x")


def test_one_process_is_alone_and_half_a_place_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS", "UNIMODAL_JOIN"):
        monkeypatch.delenv(name, raising=False)
    assert find_place() is None
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UsageError, match="JAX_PROCESS_ID"):
        find_place()
    monkeypatch.setenv("JAX_PROCESS_ID", "2")
    with pytest.raises(UsageError, match="process 2 of 2"):
        find_place()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    assert find_place() is None
