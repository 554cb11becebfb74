"""`launch.py pod`: the flags of a pod and of a run → a platform's module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unimodal.errors import UsageError
from unimodal.pods import gke, local, sky, slurm, tpu_vm
from unimodal.pods.description import Pod, device_count, split_flags
from unimodal.pods.volume import volume

CLOUDS = {"tpu-vm": tpu_vm, "gke": gke, "slurm": slurm, "sky": sky}


def launch_pod(arguments: Sequence[str], check: Callable[[str, list[str], int], object], root: Path) -> int:
    """Run, show or end a pod; returns the exit code.

    `check(command, flags, devices)` raises UsageError for what the run would refuse on so many devices: better here than
    on a rented machine.
    """
    pod, rest = split_flags(arguments)
    if pod.action == "run":
        check(pod.command, rest, device_count(pod))
    elif rest:
        raise UsageError(f"--action={pod.action} takes no {rest[0].split('=')[0]}")
    program = ("python", "launch.py", pod.command, *rest)
    if pod.platform == "local":
        volume(pod)
        if pod.action != "run":
            raise UsageError("--platform=local runs in the foreground: there is nothing to follow or to delete")
        return _show(local.dry_run(pod, program)) if pod.dry_run else local.run(pod, program, root)
    module = CLOUDS[pod.platform]
    if pod.dry_run:
        return _show(module.dry_run(pod, program))
    try:
        return module.launch(pod, program, root)
    except KeyboardInterrupt:  # the way to leave a log that is followed
        print(
            f"\nnothing of {pod.name} was stopped; --action=logs follows it, --action=delete ends it", file=sys.stderr
        )
        return 130


def _show(text: str) -> int:
    print(text)
    return 0


__all__ = ["Pod", "launch_pod"]
