"""Files of a workdir that are spoilt are one line or are read past, and a run that is refused adds nothing to them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import tiny
from spoil_data import DATA, read_all, write_data
from spoil_workdir import WORKDIR_FILES, config, read_workdir, write_workdir

import launch
from unimodal.data.skipped import FILE, Ledger, Where
from unimodal.errors import RecordError, UsageError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_workdir(folder / "workdir")
    write_data(folder / "data")
    return folder


CASES: dict[str, tuple[str, bytes, str]] = {
    "bytes that are no text": ("config.json", b'{"steps": "\x9d"}', "config.json is not JSON"),
    "a list for a config": ("config.json", b"[1]", "config.json is no config, which is an object"),
    "cut": ("config.json", b'{"steps"', "config.json is not JSON"),
    "a list for what was learned": ("from_data.json", b"[1]", "from_data.json is not JSON"),
    "a broken line of metrics": ("metrics.jsonl", b'x\n{"step": 1, "task": "a"}\n', "metrics.jsonl"),
}


@pytest.mark.parametrize("what", CASES)
def test_a_spoilt_file_is_one_line(what: str, good: Path, tmp_path: Path) -> None:
    name, content, line = CASES[what]
    workdir = Path(shutil.copytree(good / "workdir", tmp_path / "workdir"))
    read_workdir(workdir)
    (workdir / name).write_bytes(content)
    with pytest.raises(UsageError, match=line) as caught:
        read_workdir(workdir)
    assert "\n" not in str(caught.value)


def test_bytes_anywhere_are_one_line_or_nothing(good: Path, tmp_path: Path) -> None:
    """Of a workdir and of data of every kind; thousands in `python -m benchmarks.chaos`."""
    for number in range(60):
        chance = random.Random(number)
        kind = chance.choice(sorted(DATA)) if number % 2 else "workdir"
        folder = Path(shutil.copytree(good / ("data" if number % 2 else "") / kind, tmp_path / str(number)))
        names = [folder / name for name in WORKDIR_FILES] if kind == "workdir" else sorted(folder.rglob("*"))
        path = chance.choice([each for each in names if each.is_file()])
        content = bytearray(path.read_bytes())
        for _ in range(3):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content[: chance.randrange(len(content) + 1)] if number % 5 == 0 else content)
        try:
            read_workdir(folder) if kind == "workdir" else read_all(kind, folder)
        except UsageError as error:
            assert "\n" not in str(error), (number, path)


def test_a_torn_line_of_what_was_left_out_is_read_past(tmp_path: Path) -> None:
    ledger, path, where = Ledger(), tmp_path / FILE, Where("folder:x", "train")
    ledger.list_in(path)
    ledger.note(where, "a", RecordError("no picture"), 100)
    path.write_bytes(path.read_bytes() + b'{"source": "folder:x", "spl')
    ledger = Ledger()
    ledger.list_in(path)
    ledger.note(where, "b", RecordError("no sound"), 100)
    ledger = Ledger()
    ledger.list_in(path)
    assert ledger.found == {("folder:x", "train", n): f"no {w}" for n, w in (("a", "picture"), ("b", "sound"))}


def test_a_refused_run_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({**config(), "seed": 5}))
    before = {path.name: path.read_bytes() for path in workdir.iterdir()}
    asked: list[object] = []
    monkeypatch.setattr(Ledger, "list_in", lambda self, path: asked.append(path))
    line = ["launch.py", "train", f"--config={tiny.ROOT}/tests/tiny.py:vit", f"--workdir={workdir}"]
    assert launch.main(line) == 2
    assert f"workdir {workdir} belongs to another config (seed: 5 there, 0 now)" in capsys.readouterr().err
    assert not asked
    after = {path.name: path.read_bytes() for path in workdir.iterdir() if path.name != ".lock"}
    assert after == before
