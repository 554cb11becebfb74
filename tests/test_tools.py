"""The scripts that fetch data and weights say how they are used, and refuse names that they do not know."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import tiny

SCRIPTS = [
    path for path in sorted((tiny.ROOT / "tools").glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")
]
FETCHING = [path for path in SCRIPTS if path.stem.startswith("fetch")]


def script(path: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Without PATH there is neither npm nor apt-get: whoever fetched something would fail otherwise than by its arguments.
    environment = {**tiny.environment(1), "PATH": ""}
    line = [sys.executable, str(path), *arguments]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)


def test_there_are_scripts() -> None:
    assert {"fetch", "fetch_text", "fetch_weights"} <= {path.stem for path in FETCHING}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help(path: Path, tmp_path: Path) -> None:
    done = script(path, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"python tools/{path.name}" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FETCHING, ids=lambda path: path.stem)
def test_an_unknown_name_is_refused(path: Path, tmp_path: Path) -> None:
    for words in (("out", "nonsense"), ("out", "--nonsense"), ()):
        done = script(path, *words, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert ("nonsense" if words else "required") in done.stderr.splitlines()[-1]
        assert list(tmp_path.iterdir()) == []


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, tiny.ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_package_that_was_half_unpacked_is_unpacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, taken = module("fetch"), tarfile.TarFile.extract
    with tarfile.open(tmp_path / "some-1.0.0.tgz", "w:gz") as archive:
        for name in ("a", "b"):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = 1
            archive.addfile(member, io.BytesIO(name.encode()))

    def until_killed(archive: Any, member: Any, *more: Any, **how: Any) -> None:
        if member.name == "b":
            raise SystemError
        taken(archive, member, *more, **how)

    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(tarfile.TarFile, "extract", until_killed)
        fetch.fetch_npm("some", "1.0.0", tmp_path)
    folder = fetch.fetch_npm("some", "1.0.0", tmp_path)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "a", "b": "b"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some", "some-1.0.0.tgz"]


def test_every_caption_has_a_picture_of_its_own() -> None:
    captions = [
        "red heart",
        "красное сердце",
        "синяя звезда",
        "red-heart",
        "Red heart!",
        "?",
        "!",
        "x" * 300,
        "red heart",
    ]
    names = module("draw").file_names(captions)
    assert names["red heart"] == "red_heart" and len(set(map(str.casefold, names.values()))) == 8
    assert names["синяя звезда"] == "синяя_звезда" and max(map(len, names.values())) < 64
