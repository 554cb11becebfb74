"""benchmarks/runs.py: a table is made of runs that its own command made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

sys.path.insert(0, str(tiny.ROOT / "benchmarks"))

import runs


def test_results_are_used_again_by_the_same_words_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        asked.append(command)
        workdir = Path(command[3].removeprefix("--workdir="))
        workdir.mkdir(parents=True)
        (workdir / "results.json").write_text(json.dumps({"tasks": {"ctc": {"value": len(asked)}}}))

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        assert runs.train("configs/ctc.py", tmp_path / "run", 0, "--config.steps=300")["ctc"]["value"] == 1
    assert asked[0][4:] == ["--config=configs/ctc.py", "--config.steps=300", "--config.seed=0"] and len(asked) == 1
    with pytest.raises(SystemExit, match=r"made with --config.steps=300 where this asks for --config.steps=600; give"):
        runs.train("configs/ctc.py", tmp_path / "run", 0, "--config.steps=600")
    with pytest.raises(SystemExit, match=r"made with nothing where this asks for --config.eval_every=0; give"):
        runs.train("configs/ctc.py", tmp_path / "run", 0, "--config.steps=300", "--config.eval_every=0")
    (tmp_path / "run" / runs.MADE_BY).unlink()
    with pytest.raises(SystemExit, match="results.json does not say what made it; give another --out"):
        runs.train("configs/ctc.py", tmp_path / "run", 0, "--config.steps=300")
    assert len(asked) == 1
