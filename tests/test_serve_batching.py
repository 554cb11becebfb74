"""Requests on their way to an answer: who is told at once to come again."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from unimodal.answers import Asked
from unimodal.use.inputs import Entry
from unimodal.use.serve import batching


class Loaded:
    def asking(self, *_: Any, **__: Any) -> None: ...


def test_who_could_not_be_answered_in_time_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two take a tenth of a second each; while one is held up, 40 who wait are 20 batches, or two seconds."""
    held, goes = threading.Event(), threading.Event()

    def slow(asking: Any, entries: Any) -> list[dict[str, Any]]:
        time.sleep(0.1)
        if held.is_set():
            goes.wait(30)
        return [{"id": entry.id} for entry in entries]

    monkeypatch.setattr(batching, "answered", slow)
    batcher = batching.Batcher(Loaded(), batch_size=2, wait=0.5)
    key, entry = ("gpt", None, Asked()), Entry("x", dict)
    first = [batcher.submit(key, entry, within=0.001) for _ in range(8)]  # how long they take is not known yet
    assert [future.result(30) for future in first] == [{"id": "x"}] * 8
    assert batcher.expected == 0  # nobody waits
    held.set()
    some = [batcher.submit(key, entry, within=60) for _ in range(42)]
    while batcher.waiting > 40:
        time.sleep(0.01)
    assert 2 <= batcher.expected < 20
    with pytest.raises(batching.FullError, match="more requests wait than can be answered in time"):
        batcher.submit(key, entry, within=1)
    held.clear(), goes.set()
    assert [future.result(60) for future in some] == [{"id": "x"}] * 42
    batcher.close()


def test_questions_that_differ_wait_within_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four may wait. One is being answered, three were put back for asking something else, so that one more finds room."""
    begun, goes = threading.Event(), threading.Event()

    def held(asking: Any, entries: Any) -> list[dict[str, Any]]:
        begun.set()
        goes.wait(30)
        return [{"id": entry.id} for entry in entries]

    monkeypatch.setattr(batching, "answered", held)
    batcher = batching.Batcher(Loaded(), wait=0.2, most=4)
    ask = lambda seed: batcher.submit(("gpt", None, Asked(seed=seed)), Entry("x", dict))  # noqa: E731
    some = [ask(seed) for seed in range(4)]
    assert begun.wait(30) and batcher.waiting == 3
    some.append(ask(4))
    with pytest.raises(batching.FullError, match="too many requests wait; try again in a moment"):
        ask(5)
    goes.set()
    assert [future.result(60) for future in some] == [{"id": "x"}] * 5
    batcher.close()
