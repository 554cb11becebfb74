"""Decoded arrays on disk: found by what they are made of, whole or not at all, bounded, whoever writes them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from unimodal.data.blocks import Images
from unimodal.data.stored import STORE, Store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("UNIMODAL_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "decoded"
    STORE.limit(0)


def store(size: int = 1 << 20) -> Store:
    made = Store()
    made.limit(size)
    return made


def never() -> np.ndarray:
    raise AssertionError("it was decoded again")


ARRAY = np.arange(600, dtype=np.float32).reshape(20, 30)


def test_what_was_decoded_is_read(cache: Path) -> None:
    assert store().find(b"a", "x", lambda: ARRAY) is ARRAY
    found = store().find(b"a", "x", never)
    np.testing.assert_array_equal(found, ARRAY, strict=True)
    for data, what in ((b"b", "x"), (b"a", "y")):  # other bytes, or another use of them
        with pytest.raises(AssertionError, match="decoded again"):
            store().find(data, what, never)
    assert store(0).find(b"a", "x", lambda: ARRAY[:1]).shape == (1, 30)  # 0: nothing is kept, and nothing found
    (path,) = cache.glob("*/*.npy")
    np.testing.assert_array_equal(np.load(path), ARRAY)


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "pickle"])
def test_a_damaged_file_is_decoded_anew(cache: Path, damage: str) -> None:
    store().find(b"a", "x", lambda: ARRAY)
    (path,) = cache.glob("*/*.npy")
    raw = bytearray(path.read_bytes())
    if damage == "bit":
        raw[-300] ^= 1
    elif damage == "pickle":
        out = io.BytesIO()
        np.save(out, np.array([{}], object), allow_pickle=True)
        raw = bytearray(out.getvalue())
    path.write_bytes(raw[: {"cut": 900, "empty": 0}.get(damage, len(raw))])
    np.testing.assert_array_equal(store().find(b"a", "x", lambda: ARRAY), ARRAY)
    np.testing.assert_array_equal(store().find(b"a", "x", never), ARRAY)  # and written anew


def test_the_folder_is_bounded_and_what_is_idle_goes_first(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = ARRAY.nbytes + 300
    small = store(4 * one)
    for i in range(9):
        small.find(bytes([i]), "x", lambda: ARRAY)
    held = lambda: sum(path.stat().st_size for path in cache.glob("*/*"))  # noqa: E731
    assert held() <= 4 * one and len(list(cache.glob("*/*.npy"))) == 4
    assert caplog.text.count("decoded_cache is full") == 1
    first = sorted(cache.glob("*/*.npy"))[0]
    os.utime(first, (time.time() - 2 * 24 * 3600, time.time() - 2 * 24 * 3600))
    (cache / "aa").mkdir(exist_ok=True)
    (cache / "aa" / "left.partial").write_bytes(b"x" * 50)  # of a writer that was killed
    os.utime(cache / "aa" / "left.partial", (time.time() - 7200, time.time() - 7200))
    store(4 * one).find(b"new", "x", lambda: ARRAY)
    assert not first.exists() and not (cache / "aa" / "left.partial").exists() and held() <= 4 * one


WRITER = """
import sys, numpy as np
from unimodal.data.stored import Store
own, i = Store(), 0
own.limit(1 << 24)
while True:
    own.find(bytes([i % 200]), "x", lambda: np.full((40, 1000), i % 200, np.float32))
    i += 1
    if i % 200 == 0:
        for path in list(own._folder.glob("*/*.npy"))[: 20 * int(sys.argv[1])]:
            path.unlink(missing_ok=True)
"""


def test_the_folder_is_counted_in_proportion_to_what_is_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []

    class Counted(Store):
        def _look(self, folder: Path) -> None:
            looks.append(self._lock.locked())
            super()._look(folder)

    monkeypatch.setattr("unimodal.data.stored._LOOK_AGAIN", 4)
    (cache / "00").mkdir(parents=True)
    for i in range(400):
        (cache / "00" / f"{i}.npy").touch()
    made = Counted()
    made.limit(1 << 24)
    for i in range(120):
        made.find(bytes([i]), "x", lambda: ARRAY[0])
    assert len(looks) == 1 + 2 and not any(looks)  # after 400 / 8 and 450 / 8; others may write meanwhile


def test_several_writers_keep_to_one_limit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimodal.data.stored._LOOK_AGAIN", 4)
    one = ARRAY[0].nbytes + 200
    writers = [store(200 * one) for _ in range(4)]
    for i in range(400):
        writers[i % 4].find(i.to_bytes(2, "big"), "x", lambda: ARRAY[0])
    held = sum(path.stat().st_size for path in cache.glob("*/*"))
    assert 150 * one < held <= (200 + 4 * 4) * one


def test_writers_that_are_killed_leave_nothing_half_done(cache: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(n)], env=tiny.environment()) for n in (1, 2)]
    while not list(cache.glob("*/*.npy")):
        assert all(writer.poll() is None for writer in writers)
        time.sleep(0.05)
    reader, until = store(1 << 24), time.time() + 1.0
    while time.time() < until:
        for i in range(200):
            found = reader.find(bytes([i]), "x", lambda: np.full((40, 1000), i, np.float32))  # noqa: B023
            assert found.shape == (40, 1000) and (found == i).all()
    for writer in writers:
        writer.kill()
        writer.wait()
    assert all(np.load(path).shape == (40, 1000) for path in cache.glob("*/*.npy"))


def test_a_run_decodes_once_and_learns_the_same(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for i in range(24):
        place = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(place)
    config = tiny.plain("vit", steps=2, tasks__vit__source=f"folder:{tmp_path}/photos")
    plain = tiny.train(config, tmp_path / "plain")
    first = tiny.train({**config, "decoded_cache": 0.01}, tmp_path / "first")
    assert len(list(cache.glob("*/*.npy"))) >= 16
    monkeypatch.setattr("unimodal.data.blocks.images.open_picture", lambda *a, **k: never())
    again = tiny.train({**config, "decoded_cache": 0.01}, tmp_path / "again")
    assert plain.fingerprint == first.fingerprint == again.fingerprint
    with pytest.raises(AssertionError, match="decoded again"):
        Images().read({"id": "x", "image": b"another"})
