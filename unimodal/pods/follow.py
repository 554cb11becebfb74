"""The output of several commands at once, each line with the name of its command."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from unimodal.pods.tools import Step, run, spawn


def follow(steps: Mapping[str, Step]) -> list[int]:
    """Run all at the same time until all have ended; their exit codes. One alone writes to the terminal itself."""
    if len(steps) == 1:
        return [run(step, show=True).code for step in steps.values()]
    children = [(name, spawn(step)) for name, step in steps.items()]
    readers = repeat(dict(children))
    codes = [child.wait() for _, child in children]
    for reader in readers:
        reader.join()
    return codes


def repeat(children: Mapping[str, subprocess.Popen[str]]) -> Sequence[threading.Thread]:
    """Write what they write, prefixed with their names, until they close their outputs."""

    def copy(name: str, stream: IO[str], to: IO[str]) -> None:
        with stream:
            for line in stream:
                to.write(f"[{name}] {line}")
                to.flush()

    readers = [
        threading.Thread(target=copy, args=(name, stream, to), daemon=True)
        for name, child in children.items()
        for stream, to in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        if stream is not None
    ]
    for reader in readers:
        reader.start()
    return readers
