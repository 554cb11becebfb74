"""The program's process before JAX is imported: starting again with large pages, a private cache, a light import."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from unimodal.command import process

TUNED = "glibc.malloc.hugetlb=1"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, str]]:
    """The environments that this process would have been started again with. The kernel has large pages."""
    found: list[dict[str, str]] = []
    pages = tmp_path / "enabled"
    pages.write_text("always [madvise] never\n")
    monkeypatch.setattr(process, "without_huge_pages", lambda cpu: ORIGINAL(cpu, pages))
    monkeypatch.setattr(os, "execve", lambda path, words, environment: found.append(environment))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return found


ORIGINAL = process.without_huge_pages


@pytest.mark.parametrize(
    ("words", "before", "wanted"),
    [
        (["train"], None, TUNED),
        (["train", "--huge_pages"], "glibc.malloc.check=0", f"glibc.malloc.check=0:{TUNED}"),
        (["train", "--huge_pages=false"], None, None),
        (["train"], TUNED, None),  # as it was started again, or as the user set it
        (["predict"], None, None),
        (["train", "--help"], None, None),
    ],
)
def test_starting_again(
    words: list[str], before: str | None, wanted: str | None, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    process.prepare(words)
    assert [environment["GLIBC_TUNABLES"] for environment in started] == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(
    ("platform", "says"), [("cpu", "this kernel gives out none"), ("tpu,cpu", "on an accelerator")]
)
def test_none_to_be_had(
    platform: str,
    says: str,
    started: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line to who asked, nothing to who did not; it goes on either way."""
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    process.prepare(["train"])
    assert capsys.readouterr().err == ""
    process.prepare(["train", "--huge_pages"])
    line = capsys.readouterr().err
    assert line.startswith("--huge_pages: ") and says in line and line.endswith("; going on without\n")
    assert line.count("\n") == 1 and not started


def test_no_such_file_is_no_such_kernel(tmp_path: Path) -> None:
    assert "this kernel gives out none" in str(process.without_huge_pages(True, tmp_path / "nothing"))


def test_a_process_starts_again_once() -> None:
    if process.without_huge_pages(True) is not None:
        pytest.skip("this kernel, or this C library, has no large pages")
    program = "import os; from unimodal.command import process; process.prepare(['train']); "
    program += "print(os.environ['GLIBC_TUNABLES'], process.started_again())"
    environment = {name: value for name, value in tiny.environment(1).items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # a line about it comes with the run
    assert done.stdout == f"{TUNED} memory in pages of 2 MB (--huge_pages=false: without)\n"


def test_the_cache_is_private(tmp_path: Path) -> None:
    given = {"XDG_CACHE_HOME": str(tmp_path)}
    process.cache_programs(given)
    folder = Path(given[process.CACHE])
    assert folder.is_relative_to(tmp_path / "unimodal") and stat.S_IMODE(folder.stat().st_mode) == 0o700

    (folder / "old").write_text("")
    (folder / "new").write_text("")
    long_ago = time.time() - (process.KEPT_DAYS + 1) * 24 * 3600
    os.utime(folder / "old", (long_ago, long_ago))
    process.cache_programs({"XDG_CACHE_HOME": str(tmp_path)})
    assert [path.name for path in folder.iterdir()] == ["new"]

    folder.chmod(0o755)  # others could read what is there, or have put it there
    again = {"XDG_CACHE_HOME": str(tmp_path)}
    process.cache_programs(again)
    assert process.CACHE not in again


def test_a_cache_of_the_user_is_kept(tmp_path: Path) -> None:
    given = {process.CACHE: "mine", "XDG_CACHE_HOME": str(tmp_path)}
    process.cache_programs(given)
    assert given[process.CACHE] == "mine" and not list(tmp_path.iterdir())


def test_importing_the_package_does_not_wait_for_jax() -> None:
    program = "import sys, unimodal, unimodal.command; print([n for n in ('jax', 'numpy', 'flax') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], env=tiny.environment(1), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_refused_run_leaves_no_workdir(tmp_path: Path) -> None:
    """Nor does it take away one that was there, or that holds anything."""
    from unimodal.errors import UsageError
    from unimodal.training.alone import alone

    (tmp_path / "old").mkdir()
    for name in ("new", "old"):
        with pytest.raises(UsageError), alone(tmp_path / name):
            raise UsageError("a column that is not there")
    with pytest.raises(UsageError), alone(tmp_path / "begun"):
        (tmp_path / "begun" / "config.json").write_text("{}")
        raise UsageError("later")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun", "old"]
    with alone(tmp_path / "new"):  # and it can be made again
        assert (tmp_path / "new" / ".lock").exists()


def test_a_reader_who_has_read_enough(tmp_path: Path) -> None:
    """As `head` does: no traceback, and the exit code of a process that SIGPIPE ends."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(tiny.ROOT / "launch.py"), "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=tiny.environment(1))
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
