"""A workdir is enough by itself: moved elsewhere, with the vocabulary that it was trained with gone, it is used and evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import unimodal
from unimodal.command import main
from unimodal.data.sources import open_source
from unimodal.data.train_encoder import train_encoder

pytest.importorskip("tokenizers")


RECIPE = """import json
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads({text!r}))
"""


def train(workdir: Path, vocabulary: Path, steps: int) -> int:
    """Train as a user would, by a recipe that names the vocabulary."""
    texts = dict(encoder=str(vocabulary), length=16)
    source = workdir.parent / "pages"
    plain = tiny.plain("gpt", steps=steps, tasks__gpt__texts=texts, tasks__gpt__source=f"folder:{source}")
    if not source.exists():
        tiny.short_book(source)
    recipe = workdir.parent / "recipe.py"
    recipe.write_text(RECIPE.format(text=json.dumps(plain)), encoding="utf-8")
    return main(["unimodal", "train", f"--config={recipe}", f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run's workdir and vocabulary, and what it is answered after a prompt."""
    folder = tmp_path_factory.mktemp("begun")
    vocabulary = folder / "vocabulary.json"
    train_encoder(open_source("embedded:emoji", "train"), size=264, fields=("name",)).save(str(vocabulary))
    assert train(folder / "run", vocabulary, steps=2) == 0
    return folder / "run", vocabulary, _answer(folder / "run")


def _answer(workdir: Path) -> str:
    return unimodal.load(workdir).predict("red heart", task="gpt", steps=4, temperature=0.0)[0]["continuation"]


def test_a_moved_workdir_needs_no_original(begun: tuple[Path, Path, str], tmp_path: Path, capfd: Any) -> None:
    workdir, vocabulary, answer = begun
    moved = Path(shutil.copytree(workdir, tmp_path / "moved"))
    aside = vocabulary.rename(vocabulary.with_suffix(".aside"))
    try:
        assert _answer(moved) == answer
        assert main(["unimodal", "eval", f"--workdir={moved}"]) == 0
        assert "bits per byte" in capfd.readouterr().out
        (moved / "encoders" / "0" / vocabulary.name).write_bytes(b"{}")
        assert main(["unimodal", "eval", f"--workdir={moved}"]) == 2
        assert "was changed" in capfd.readouterr().err
    finally:
        aside.rename(vocabulary)


def test_another_vocabulary_under_the_same_path_is_refused(begun: tuple[Path, Path, str], capfd: Any) -> None:
    workdir, vocabulary, _ = begun
    before = vocabulary.read_bytes()
    vocabulary.write_bytes(before + b"\n")
    try:
        assert train(workdir, vocabulary, steps=3) == 2
        assert f"{vocabulary}: {vocabulary.name} has changed since" in capfd.readouterr().err
    finally:
        vocabulary.write_bytes(before)


def test_what_is_kept_is_hashed(begun: tuple[Path, Path, str]) -> None:
    workdir, vocabulary, _ = begun
    index = json.loads((workdir / "encoders" / "index.json").read_text(encoding="utf-8"))
    assert list(index) == [str(vocabulary)] and list(index[str(vocabulary)]["sha256"]) == [vocabulary.name]
    assert (workdir / "encoders" / index[str(vocabulary)]["file"]).read_bytes() == vocabulary.read_bytes()
    assert np.isfinite(json.loads((workdir / "results.json").read_text(encoding="utf-8"))["tasks"]["gpt"]["value"])
