"""What comes from elsewhere runs nothing: pickles, kept indexes, folders of compiled programs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from unimodal.command.compiled import require_private_cache
from unimodal.data.line_index import kept
from unimodal.errors import UsageError
from unimodal.interop.load import load_huggingface


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_the_hostile_pickle_works_where_it_is_opened(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(tmp_path / "run")))
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "model.pth"])
def test_a_pickle_for_weights_is_not_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Hostile(tmp_path / "run")))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        UsageError, match=f"holds {name} but no model.safetensors, and a pickle can run any code"
    ) as caught:
        load_huggingface(tmp_path)
    assert "map_location='cpu'" in str(caught.value) and "weights_only=True" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pickle_by_another_name_is_no_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / name).write_bytes(pickle.dumps(Hostile(tmp_path / "run")))
    with pytest.raises(UsageError, match=name):
        load_huggingface(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_pickle_for_a_kept_index_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMODAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").write_text("x")
    made = np.arange(3)
    kept(str(tmp_path / "data"), "k", lambda: made)
    (file,) = (tmp_path / "cache" / "indexes").iterdir()
    with file.open("wb") as out:
        np.save(out, np.array([Hostile(tmp_path / "run")], dtype=object), allow_pickle=True)
    np.testing.assert_array_equal(kept(str(tmp_path / "data"), "k", lambda: made), made)
    assert not (tmp_path / "run").exists()


def test_no_file_of_the_program_opens_a_pickle() -> None:
    """Worker processes are given what the run itself has made (`data/workers.py`); nothing is read from a file so."""
    root = Path(__file__).parents[2]
    for path in [p for folder in ("unimodal", "tasks", "configs") for p in (root / folder).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text and "allow_pickle=True" not in text, path
        assert "pickle.load" not in text or path.name == "workers.py", path


def test_compiled_programs_of_others_are_not_run(tmp_path: Path) -> None:
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
        require_private_cache()
        assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
        (tmp_path / "cache").chmod(0o775)
        require_private_cache()
        (tmp_path / "cache").chmod(0o777)
        with pytest.raises(UsageError, match="cache can be written by everyone, and what lies there is run: chmod o-w"):
            require_private_cache()
        for harmless in ("gs://bucket/cache", None):
            jax.config.update("jax_compilation_cache_dir", harmless)
            require_private_cache()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
