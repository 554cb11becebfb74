"""Several processes on this machine, joined by jax.distributed: a pod without other machines."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from unimodal.hosts.peer import EXIT_LOST, EXIT_STOPPED
from unimodal.pods.description import Pod
from unimodal.pods.environment import environment
from unimodal.pods.follow import repeat

GRACE_SECONDS = 20.0  # in which the others end by themselves, with a line of their own, before they are told to
STOP_SECONDS = 180.0  # for a checkpoint


def variables(pod: Pod, process: int, ports: tuple[int, int]) -> dict[str, str]:
    """Give the environment of a process beside our own."""
    found = environment("cpu" if pod.devices else "gpu") | {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{ports[0]}",
        "JAX_NUM_PROCESSES": str(pod.processes),
        "JAX_PROCESS_ID": str(process),
        "UNIMODAL_GUARD_PORT": str(ports[1]),
    }
    if pod.devices:
        return found | {"JAX_NUM_CPU_DEVICES": str(pod.devices)}
    return found | {"CUDA_VISIBLE_DEVICES": str(process)}


def dry_run(pod: Pod, program: Sequence[str]) -> str:
    """List the commands that would run."""
    lines = []
    for process in range(pod.processes):
        set_to = " ".join(f"{key}={value!r}" for key, value in variables(pod, process, (8476, 8477)).items())
        lines.append(f"{set_to} {shlex.join(program)}")
    return "\n".join(["# on this machine, on two free ports, all at the same time:", *lines])


def run(pod: Pod, program: Sequence[str], root: Path) -> int:
    """Run them, their output prefixed by their number, and return their exit code.

    When one dies, the others end too, and the last line says which it was.
    """
    ports = (free_port(), free_port())
    own = {"python": sys.executable, "launch.py": str(root / "launch.py")}  # from the folder that the user is in
    words = [*(own.get(word, word) for word in program[:2]), *program[2:]]
    children = [_start(words, {**os.environ, **variables(pod, p, ports)}) for p in range(pod.processes)]
    readers = repeat({str(number): child for number, child in enumerate(children)})
    before = {number: signal.signal(number, _pass_on(children)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        first = _wait(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for reader in readers:
            reader.join(timeout=5)
        for number, handler in before.items():
            signal.signal(number, handler)
    if first is None:
        return 0
    code = children[first].returncode
    if code == EXIT_STOPPED:
        print("stopped with a checkpoint; run the same command again to go on", flush=True)
        return code
    print(f"error: process {first} of {pod.processes} {_ending(code)}; the others have stopped", file=sys.stderr)
    return code if code > 0 else EXIT_LOST


def free_port() -> int:
    """Find a port of this machine that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(words: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    # A session of its own: ctrl-C on the terminal reaches this process alone, which passes on a gentler signal.
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words,
        env=dict(variables),
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _pass_on(children: Sequence[subprocess.Popen[str]]):
    def handler(_number: int, _frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.terminate()

    return handler


def _wait(children: Sequence[subprocess.Popen[str]]) -> int | None:
    """Wait until all have ended. When one fails, end the others. Returns the first that failed."""
    first, deadline, told = None, 0.0, False
    while any(child.poll() is None for child in children):
        failed = [number for number, child in enumerate(children) if child.poll() not in (None, 0)]
        if first is None and failed:
            first = _root(children, failed)
            deadline = time.monotonic() + (
                STOP_SECONDS if children[first].returncode == EXIT_STOPPED else GRACE_SECONDS
            )
        elif first is not None and time.monotonic() > deadline:
            for child in children:
                if child.poll() is None:
                    (child.kill if told else child.terminate)()
            told, deadline = True, time.monotonic() + GRACE_SECONDS
        time.sleep(0.05)
    failed = [number for number, child in enumerate(children) if child.returncode != 0]
    return _root(children, failed) if failed else None


def _root(children: Sequence[subprocess.Popen[str]], failed: Sequence[int]) -> int:
    """Choose a process that failed by itself and not because of another."""
    return min(
        failed, key=lambda n: (children[n].returncode in (EXIT_LOST, EXIT_STOPPED), children[n].returncode > 0, n)
    )


def _ending(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
