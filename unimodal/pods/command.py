"""`launch.py pod`: the flags of a pod and of a run → a platform's module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from unimodal.errors import UsageError
from unimodal.pods import gke, local, sky, slurm, tpu_vm
from unimodal.pods.description import Pod, split_flags

CLOUDS = {"tpu-vm": tpu_vm, "gke": gke, "slurm": slurm, "sky": sky}


def launch_pod(arguments: Sequence[str], check: Callable[[str, list[str]], object], root: Path) -> int:
    """Run, show or end a pod; returns the exit code.

    `check(command, flags)` raises UsageError for flags that the run would refuse: better here than on a rented machine.
    """
    pod, rest = split_flags(arguments)
    if pod.action == "run":
        check(pod.command, rest)
    elif rest:
        raise UsageError(f"--action={pod.action} takes no {rest[0].split('=')[0]}")
    program = ("python", "launch.py", pod.command, *rest)
    if pod.platform == "local":
        if pod.action != "run":
            raise UsageError("--platform=local runs in the foreground: there is nothing to follow or to delete")
        return _show(local.dry_run(pod, program)) if pod.dry_run else local.run(pod, program, root)
    module = CLOUDS[pod.platform]
    return _show(module.dry_run(pod, program)) if pod.dry_run else module.launch(pod, program, root)


def _show(text: str) -> int:
    print(text)
    return 0


__all__ = ["Pod", "launch_pod"]
