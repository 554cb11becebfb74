"""Two real processes through `launch.py pod`: one dies and the other says so; run again, told to stop, they resume exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tiny

FIELDS = ("--config=tests/tiny.py:vit", "--config.mesh.data=2", "--config.steps=4000", "--config.checkpoint_every=2")


def start(workdir: Path, *more: str) -> subprocess.Popen[str]:
    flags = ("--platform=local", "--processes=2", "--devices=1", "--fake_data", f"--workdir={workdir}")
    pipe = subprocess.PIPE
    command = tiny.command("pod", *flags, *FIELDS, *more)
    return subprocess.Popen(command, cwd=tiny.ROOT, env=tiny.environment(1), stdout=pipe, stderr=pipe, text=True)


def process(launcher: subprocess.Popen[str], number: int) -> int:
    """The id of one of its processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher.pid and f"JAX_PROCESS_ID={number}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"process {number} does not run: {launcher.communicate(timeout=60)}")


def lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def send(
    launcher: subprocess.Popen[str], number: int, what: signal.Signals, when: Callable[[], bool]
) -> tuple[str, str]:
    """Send a signal to one process as soon as `when()`; output and errors of all, within a minute."""
    deadline = time.monotonic() + 240
    while not when() and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process(launcher, number), what)
    try:
        return launcher.communicate(timeout=60)
    finally:
        launcher.terminate()


def test_a_death_is_named_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    first = start(tmp_path / "two")
    saved = tmp_path / "two" / "checkpoints"
    out, err = send(first, 1, signal.SIGKILL, lambda: any(p.name.isdigit() for p in saved.glob("*")))
    assert first.returncode == 76, err
    assert "[0] error: process 1 (" in err and "of 2 has died" in err and "run the same command again" in err
    assert err.splitlines()[-1] == "error: process 1 of 2 was killed by SIGKILL; the others have stopped"
    assert "Traceback" not in err

    logged = lines(tmp_path / "two")
    second = start(tmp_path / "two")
    out, err = send(second, 1, signal.SIGTERM, lambda: lines(tmp_path / "two") > logged)  # to one of them alone
    assert second.returncode == 75, err
    assert "stopped after step" in out and "stopped with a checkpoint" in out
    end = max(int(path.name) for path in saved.glob("*") if path.name.isdigit())
    losses = {step: row["loss"] for step, row in tiny.logged(tmp_path / "two")["vit"].items()}
    assert list(losses) == list(range(1, end + 1))
    one = tiny.train(tiny.plain("vit", mesh__data=2, steps=4000, stop_after=end), tmp_path / "one", fake_data=True)
    np.testing.assert_allclose(list(losses.values()), list(one.losses("vit").values()), rtol=1e-4)
