"""What a run tells those outside: status.json, a line for a step that hangs, and last words."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from unimodal.training.status import COMPILING, TRAINING, WAITING, Status


def test_status_is_whole_at_any_time_and_says_how_the_run_ended(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def before(k: int) -> None:
        if (tmp_path / "status.json").exists():
            seen.append(json.loads((tmp_path / "status.json").read_text()))

    toy.run(tmp_path, steps=4, before=before)
    last = json.loads((tmp_path / "status.json").read_text())
    assert (last["phase"], last["step"], last["steps"]) == ("trained", 4, 4)
    assert seen and all(found["phase"] != "trained" for found in seen)
    assert not (tmp_path / "last_words.json").exists()


def test_last_words_name_the_step_and_the_examples(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Status(tmp_path, 9) as status:
        status.now(3, WAITING, ("vit",))
        status.now(3, TRAINING, ("vit",), {"vit": np.array(["cat-1", "dog-2"])})
        raise KeyError("no such thing")
    words = json.loads((tmp_path / "last_words.json").read_text())
    assert words["error"] == "KeyError: 'no such thing'" and words["ids"] == {"vit": ["cat-1", "dog-2"]}
    assert (words["step"], words["tasks"], words["phase"]) == (3, ["vit"], COMPILING)
    assert any("test_status.py" in line for line in words["traceback"])
    assert json.loads((tmp_path / "status.json").read_text())["phase"] == "failed"
    with Status(tmp_path, 9):  # the next run begins with none
        assert not (tmp_path / "last_words.json").exists()


def test_a_step_that_hangs_is_told_once_with_all_stacks(tmp_path: Path) -> None:
    told: list[str] = []
    with Status(tmp_path, 99, tell=told.append, beat=0.02, patience=0.2) as status:
        for step in range(1, 8):
            status.now(step, WAITING, ("gpt",))
            status.now(step, TRAINING, ("gpt",))
        status.now(8, "evaluating")
        time.sleep(0.4)  # an evaluation is no step
        assert not told
        status.now(8, WAITING, ("gpt",))
        deadline = time.monotonic() + 30
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
    assert len(told) == 1 and "step 8 of gpt has taken" in told[0] and "waiting for data" in told[0]
    assert "test_a_step_that_hangs" in (tmp_path / "stacks.txt").read_text()


def test_a_workdir_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    with Status(tmp_path / "gone", 9, beat=0.01) as status:
        status.now(1, WAITING)
        time.sleep(0.05)
