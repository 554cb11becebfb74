"""A run that was stopped, told to stop or killed goes on as if nothing had happened: the same losses, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

PATIENCE = 180.0  # seconds, for a child to import, compile and get as far as it is waited for


def numbers(run: tiny.Run) -> dict[str, dict[int, dict[str, float]]]:
    """All metrics but the time that was spent."""
    return {
        task: {step: {k: v for k, v in row.items() if k != "input_wait_seconds"} for step, row in steps.items()}
        for task, steps in run.metrics.items()
    }


def test_stopped_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    config = tiny.plain("gpt", "vit", steps=6)
    whole = tiny.train(config, tmp_path / "whole")
    first = tiny.train({**config, "stop_after": 3}, tmp_path / "parts")
    assert (whole.done, first.done) == (True, False)
    assert list(first.losses("gpt")) == [1, 2, 3]
    rest = tiny.train(config, tmp_path / "parts")
    assert rest.done
    assert int(rest.state.step) == 6
    assert list(rest.losses("gpt")) == list(rest.losses("vit")) == [1, 2, 3, 4, 5, 6]
    assert numbers(rest) == numbers(whole)
    assert rest.fingerprint == whole.fingerprint != first.fingerprint


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    config = tiny.plain("vit", steps=2)
    once = tiny.train(config, tmp_path)
    again = tiny.train(config, tmp_path)
    assert again.done
    assert again.fingerprint == once.fingerprint
    assert again.metrics == once.metrics


def checkpoints(workdir: Path) -> list[int]:
    """The steps of the checkpoints that are complete."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) if folder.exists() else []


def lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(workdir: Path, kinds: str, **options: Any) -> subprocess.Popen[str]:
    """`launch.py train` on random batches, in a process of its own."""
    fields = [f"--config.{name}={value}" for name, value in options.items()]
    command = tiny.command("train", f"--config=tests/tiny.py:{kinds}", f"--workdir={workdir}", "--fake_data", *fields)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=tiny.ROOT, env=tiny.environment(), stdout=pipe, stderr=pipe, text=True)


def interrupt(child: subprocess.Popen[str], number: int, when: Callable[[], bool]) -> tuple[int, str, str]:
    """Send the signal as soon as `when()`; exit code, output and errors."""
    deadline = time.monotonic() + PATIENCE
    while not when() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running = child.poll() is None
    child.send_signal(number)
    try:
        out, err = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
    assert running, f"ended with {child.returncode} before it was interrupted: {err}"
    return child.returncode, out, err


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    workdir = tmp_path / "killed"
    child = start(workdir, "gpt,vit", steps=4000, schedule="alternate", checkpoint_every=2)
    # With at least one more step logged than checkpointed, or the resumed run would have nothing to do again.
    code, _, err = interrupt(child, signal.SIGKILL, lambda: bool(checkpoints(workdir)) and lines(workdir) % 2 == 1)
    assert code == -signal.SIGKILL, err
    saved = checkpoints(workdir)[-1]
    end = saved + 6
    config = tiny.plain("gpt", "vit", steps=4000, schedule="alternate", stop_after=end)
    resumed = tiny.train(config, workdir, fake_data=True)
    whole = tiny.train(config, tmp_path / "whole", fake_data=True)
    assert sorted([*resumed.losses("gpt"), *resumed.losses("vit")]) == list(range(1, end + 1))
    assert numbers(resumed) == numbers(whole)
    assert resumed.fingerprint == whole.fingerprint


def test_sigterm_stops_with_a_checkpoint(tmp_path: Path) -> None:
    workdir, steps = tmp_path / "stopped", 60
    # A checkpoint at every step makes steps slow enough to be interrupted.
    child = start(workdir, "gpt", steps=steps, checkpoint_every=1)
    code, out, err = interrupt(child, signal.SIGTERM, lambda: lines(workdir) >= 2)
    assert code == 75, err  # schedulers start again what ends so
    saved = checkpoints(workdir)[-1]
    assert f"stopped after step {saved};" in out
    assert list(tiny.logged(workdir)["gpt"]) == list(range(1, saved + 1))
    assert saved < steps

    rerun = start(workdir, "gpt", steps=steps)
    out, err = rerun.communicate(timeout=PATIENCE)
    assert rerun.returncode == 0, err
    assert checkpoints(workdir)[-1] == steps
    whole = tiny.train(tiny.plain("gpt", steps=steps), tmp_path / "whole", fake_data=True)
    assert {step: row["loss"] for step, row in tiny.logged(workdir)["gpt"].items()} == whole.losses("gpt")


@pytest.mark.parametrize("schedule", ["sum", "alternate"])
def test_who_trains_when_depends_on_the_step_alone(schedule: str) -> None:
    from unimodal.training.loop import turns

    tasks = tiny.build(tiny.plain("gpt", "vit", tasks__gpt__weight=3.0)).tasks
    first, second = turns(tasks, schedule), turns(tasks, schedule)
    assert [first(step) for step in range(8)] == [second(step) for step in range(8)]
    count = sum("gpt" in first(step) for step in range(8))
    assert count == (8 if schedule == "sum" else 6)


def test_a_break_within_a_logging_window_loses_no_row(tmp_path: Path) -> None:
    config = tiny.plain("gpt", "vit", steps=8, log_every=4, schedule="alternate", tasks__vit__weight=3.0)
    whole = tiny.train(config, tmp_path / "whole", fake_data=True)
    # gpt has its turns at steps 2 and 6, and a row each at 4 and 8.
    assert list(whole.losses("gpt")) == list(whole.losses("vit")) == [4, 8]
    tiny.train({**config, "stop_after": 6}, tmp_path / "parts", fake_data=True)
    rest = tiny.train(config, tmp_path / "parts", fake_data=True)
    assert numbers(rest) == numbers(whole)
    assert rest.fingerprint == whole.fingerprint


def test_interrupts_are_answered_at_once(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import launch
    from unimodal.training.stopping import StopSignal

    def interrupted(*_: object) -> None:
        with StopSignal(None) as stop:
            assert not stop.now(0)
            signal.raise_signal(signal.SIGINT)
            assert stop.now(0)
            assert capfd.readouterr().err == "stopping after this step, with a checkpoint; Ctrl-C again ends at once\n"
            signal.raise_signal(signal.SIGINT)
        pytest.fail("the second is not to be outlived")

    monkeypatch.setattr("unimodal.command.words.answer", interrupted)
    assert launch.main(["launch.py", "train"]) == 130
    said = "error: interrupted; the same command goes on from the last checkpoint, if there is one\n"
    assert capfd.readouterr().err == said
