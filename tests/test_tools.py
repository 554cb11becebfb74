"""The scripts that fetch data and weights say how they are used, and refuse names that they do not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
