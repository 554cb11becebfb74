"""Two processes that train together get the numbers of one process with as many devices."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny

STEPS = 3


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(workdir: Path, **variables: str) -> subprocess.Popen[str]:
    """`launch.py train` with one CPU device of its own."""
    arguments = ["--config=tests/tiny.py:gpt,vit", f"--workdir={workdir}", f"--config.stop_after={STEPS}"]
    command = tiny.command("train", *arguments, "--config.mesh.data=2")
    environment = tiny.environment(1, **variables)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=tiny.ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    children = [
        start(tmp_path / "two", JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(number))
        for number in range(2)
    ]
    try:
        outputs = [child.communicate(timeout=240) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, err) in zip(children, outputs, strict=True):
        assert child.returncode == 0, err
    said = [f"stopped after step {STEPS}" in out for out, _ in outputs]
    assert said == [True, False]

    # `logged` fails if both processes had written: each step would be there twice.
    found = tiny.logged(tmp_path / "two")
    one = tiny.train(tiny.plain("gpt", "vit", mesh=dict(data=2), stop_after=STEPS), tmp_path / "one")
    assert found.keys() == one.metrics.keys()
    for task, steps in one.metrics.items():
        assert list(found[task]) == list(steps) == list(range(1, STEPS + 1))
        for step, metrics in steps.items():
            message = f"{task} at step {step}"
            np.testing.assert_allclose(found[task][step]["loss"], metrics["loss"], rtol=1e-5, err_msg=message)
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1

    # What two processes saved, one process with one device goes on with.
    onward = tiny.train(tiny.plain("gpt", "vit", stop_after=STEPS + 1), tmp_path / "two")
    further = tiny.train(tiny.plain("gpt", "vit", stop_after=STEPS + 1), tmp_path / "one")
    for task in ("gpt", "vit"):
        np.testing.assert_allclose(onward.losses(task)[STEPS + 1], further.losses(task)[STEPS + 1], rtol=1e-4)


def test_a_wrong_process_number_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import launch
    from unimodal.errors import UsageError

    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "two")
    with pytest.raises(UsageError, match="cannot join the other processes"):
        launch.initialise_processes()
