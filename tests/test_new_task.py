"""A task is two new files, and no edit anywhere: those of docs/add_a_task.md, in an empty folder, beside an installed wheel."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

PAGE = (tiny.ROOT / "docs" / "add_a_task.md").read_text(encoding="utf-8")
TASK, CONFIG = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SOURCES = ("unimodal", "tasks", "configs")
FILES = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "launch.py",
    "constraints.txt",
    "constraints-3.13.txt",
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder called unimodal with what a wheel is made from."""
    folder = tmp_path_factory.mktemp("beside") / "unimodal"
    folder.mkdir()
    for name in SOURCES:
        shutil.copytree(tiny.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(tiny.ROOT / name, folder)
    return folder


def succeed(*words: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def site(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in, without its dependencies."""
    wheels = tmp_path_factory.mktemp("wheels")
    target = wheels / "site"
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    succeed(*pip, "wheel", *offline, f"--wheel-dir={wheels}", ".", cwd=clone)
    found = next(wheels.glob("unimodal-*.whl"))
    succeed(*pip, "install", "--no-deps", "--no-index", "--no-compile", f"--target={target}", str(found), cwd=wheels)
    return target


def test_a_script_beside_the_clone_imports_the_package(clone: Path, tmp_path: Path) -> None:
    """And not the clone's folder, which is of the same name: an editable install puts a path there, no import hook."""
    build = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    succeed("-c", build, cwd=clone)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    script = clone.parent / "script.py"
    script.write_text(
        f"import importlib.util, site\nsite.addsitedir({str(tmp_path / 'site')!r})\n"
        f"print(importlib.util.find_spec('unimodal').origin)\n"
    )
    assert succeed("-E", "-S", str(script), cwd=clone.parent).strip() == str(clone / "unimodal" / "__init__.py")


@pytest.fixture
def unimodal(site: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The console command, run in a folder that is empty at first."""
    (tmp_path / "mine").mkdir()

    def command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join(p for p in (str(site), os.environ.get("PYTHONPATH", "")) if Path(p) != tiny.ROOT)
        line = [sys.executable, str(site / "bin" / "unimodal"), *arguments]
        environment = {**tiny.environment(1), "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(line, cwd=tmp_path / "mine", env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-3000:]
        return done

    return command


def lines(text: str) -> int:
    return len(text.strip().splitlines())


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert lines(done.stderr) == 1, done.stderr
    return done.stderr


def test_a_new_task_is_two_short_files(unimodal: Any, tmp_path: Path) -> None:
    assert lines(TASK) <= 60
    assert lines(CONFIG) <= 20
    for room, text in (("tasks", TASK), ("configs", CONFIG)):
        (tmp_path / "mine" / room).mkdir()
        (tmp_path / "mine" / room / "mean_colour.py").write_text(text, encoding="utf-8")

    done = unimodal("train", "--config=mean_colour", "--workdir=run")
    assert "note" not in done.stderr
    workdir = tmp_path / "mine" / "run"
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    colour = results["tasks"]["mean_colour"]
    assert results["step"] == 30
    assert colour["metric"] == "mean squared error"
    assert math.isfinite(colour["value"])
    assert colour["value"] < 0.5 * colour["baseline"]
    assert set(tiny.logged(workdir)) == {"mean_colour"}
    assert "mean_colour" in (workdir / "report.html").read_text(encoding="utf-8")

    # An own file of a name that comes along is used, and a line says so; one that does not load is a line, too.
    (tmp_path / "mine" / "tasks" / "vit.py").write_text("class Vit:\n    x = (\n", encoding="utf-8")
    broken = one_line(unimodal("train", "--config=vit", "--workdir=other", code=2))
    assert f"{tmp_path / 'mine' / 'tasks' / 'vit.py'}, line 2: SyntaxError" in broken
    shutil.copy(tmp_path / "mine" / "configs" / "mean_colour.py", tmp_path / "mine" / "configs" / "vit.py")
    clash = unimodal("train", "--config=vit", "--workdir=other", "--dry_run").stderr
    assert (
        clash == f"note: {tmp_path / 'mine' / 'configs' / 'vit.py'} is used, not the configs/vit.py that comes along\n"
    )


def test_recipes_come_along(unimodal: Any, site: Path, tmp_path: Path) -> None:
    assert not (site / "tasks").exists() and not (site / "configs").exists()  # names that anybody may have
    shown = unimodal("train", "--config=demo", "--dry_run").stdout
    assert all(f"task       {name}: batch" in shown for name in ("gpt", "bert", "vit", "clip", "wav2vec2"))
    assert unimodal("train", "--config=configs/demo.py", "--dry_run").stdout == shown
    small = ("--config.steps=2", "--config.tasks.vit.batch_size=4", "--config.eval_every=0", "--fake_data")
    unimodal("train", "--config=vit:size=tiny", "--workdir=run", *small)
    assert set(tiny.logged(tmp_path / "mine" / "run")["vit"]) == {2}
    assert "did you mean demo" in one_line(unimodal("train", "--config=demmo", "--workdir=run", code=2))


def test_a_pod_of_this_machine_needs_no_repository(unimodal: Any) -> None:
    shown = unimodal("pod", "--platform=local", "--config=demo", "--workdir=run", "--dry_run").stdout
    assert "python -m unimodal train --config=demo --workdir=run" in shown
    refused = ("pod", "--platform=tpu-vm", "--topology=v5e:2x2", "--zone=z", "--config=demo", "--workdir=gs://some/run")
    assert "clone" in one_line(unimodal(*refused, "--dry_run", code=2))
