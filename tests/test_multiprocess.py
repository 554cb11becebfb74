"""Two processes that train together get the numbers of one process with as many devices."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

STEPS = 3


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(command: str, workdir: Path, *more: str, kinds: str = "gpt,vit", **variables: str) -> subprocess.Popen[str]:
    """`launch.py` with one CPU device of its own."""
    arguments = [command, f"--config=tests/tiny.py:{kinds}", f"--workdir={workdir}", *more]
    environment = tiny.environment(1, **variables)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        tiny.command(*arguments), cwd=tiny.ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def start_two(command: str, workdir: Path, *more: str, kinds: str = "gpt,vit") -> list[subprocess.Popen[str]]:
    """`launch.py` in two processes that find each other; all devices on `data` unless `more` says otherwise."""
    place = dict(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{free_port()}", JAX_NUM_PROCESSES="2")
    more = ("--config.mesh.data=-1", *more)
    return [start(command, workdir, *more, kinds=kinds, **place, JAX_PROCESS_ID=str(number)) for number in range(2)]


def outputs_of(children: list[subprocess.Popen[str]]) -> list[str]:
    """What each printed, once all have ended well."""
    try:
        outputs = [child.communicate(timeout=240) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, err) in zip(children, outputs, strict=True):
        assert child.returncode == 0, err
    return [out for out, _ in outputs]


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    book = tiny.short_book(tmp_path / "book")
    same, gpt = dict(tasks__gpt__source=book), f"--config.tasks.gpt.source={book}"
    outputs = outputs_of(start_two("train", tmp_path / "two", f"--config.stop_after={STEPS}", gpt))
    assert [f"stopped after step {STEPS}" in out for out in outputs] == [True, False]

    # `logged` fails if both processes had written: each step would be there twice.
    found = tiny.logged(tmp_path / "two")
    one = tiny.train(tiny.plain("gpt", "vit", mesh=dict(data=2), stop_after=STEPS, **same), tmp_path / "one")
    assert found.keys() == one.metrics.keys()
    for task, steps in one.metrics.items():
        assert list(found[task]) == list(steps) == list(range(1, STEPS + 1))
        for step, metrics in steps.items():
            message = f"{task} at step {step}"
            np.testing.assert_allclose(found[task][step]["loss"], metrics["loss"], rtol=1e-5, err_msg=message)
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1

    # What two processes saved, one process with one device goes on with.
    onward = tiny.train(tiny.plain("gpt", "vit", stop_after=STEPS + 1, **same), tmp_path / "two")
    further = tiny.train(tiny.plain("gpt", "vit", stop_after=STEPS + 1, **same), tmp_path / "one")
    for task in ("gpt", "vit"):
        np.testing.assert_allclose(onward.losses(task)[STEPS + 1], further.losses(task)[STEPS + 1], rtol=1e-4)

    # Two evaluate as one does, and one of them writes.
    shutil.copytree(tmp_path / "two", tmp_path / "copy")
    evaluating = [*start_two("eval", tmp_path / "two", gpt), start("eval", tmp_path / "copy", gpt)]
    assert [out.count("wrote") for out in outputs_of(evaluating)] == [1, 0, 1]
    two, one = (json.loads((tmp_path / name / "results.json").read_text("utf-8"))["tasks"] for name in ("two", "copy"))
    for task in ("gpt", "vit"):
        np.testing.assert_allclose(two[task]["value"], one[task]["value"], rtol=1e-5)
        assert two[task]["baseline"] == one[task]["baseline"]


def test_processes_along_tensor_read_the_same_rows(tmp_path: Path) -> None:
    mesh, more = dict(data=1, tensor=2), ("--config.mesh.data=1", "--config.mesh.tensor=2", "--fake_data")
    outputs_of(start_two("train", tmp_path / "two", *more, f"--config.stop_after={STEPS}", kinds="gpt"))
    found = tiny.logged(tmp_path / "two")["gpt"]
    one = tiny.train(tiny.plain("gpt", mesh=mesh, stop_after=STEPS), tmp_path / "one", fake_data=True).metrics["gpt"]
    assert list(found) == list(one) == list(range(1, STEPS + 1))
    for step, metrics in one.items():
        for name in ("loss", "gradient_norm"):
            np.testing.assert_allclose(found[step][name], metrics[name], rtol=1e-4, err_msg=f"{name} at step {step}")


def test_a_wrong_process_number_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from unimodal import hosts
    from unimodal.errors import UsageError

    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "two")
    with pytest.raises(UsageError, match="cannot join the other processes"):
        hosts.join(tiny.ROOT, {}, "run")


DIFFER = """
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

address, number = sys.argv[1:]
jax.distributed.initialize(address, 2, int(number))
from unimodal.sharding import make_mesh
from unimodal.training.replicas import differing

mesh = make_mesh(data=4)
value, parts = np.arange(6, dtype=np.float32), []
for device in mesh.local_devices:
    own = value.copy()
    own[3] += (device.id == jax.devices()[-1].id) * np.float32(2**-20)
    parts.append(jax.device_put(own, device))
spoilt = jax.make_array_from_single_device_arrays((6,), NamedSharding(mesh, PartitionSpec()), parts)
print(jax.devices()[-1].id, differing({"kernel": spoilt}, mesh))
"""


def test_the_host_of_a_copy_that_differs_is_named_by_all(tmp_path: Path) -> None:
    script = tmp_path / "differ.py"
    script.write_text(DIFFER)
    place, pipe = f"127.0.0.1:{free_port()}", subprocess.PIPE
    children = [
        subprocess.Popen(
            [sys.executable, str(script), place, str(number)],
            env=tiny.environment(2), cwd=tiny.ROOT, stdout=pipe, stderr=pipe, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for out in outputs_of(children):
        (line,) = [line for line in out.splitlines() if "kernel" in line]  # among what the processes say of meeting
        device, told = line.split(" ", 1)
        assert told == f"device {device} (process 1 on {socket.gethostname()}): kernel"
