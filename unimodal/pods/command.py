"""`launch.py pod`: the flags of a pod and of a run → a platform's module."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from unimodal.errors import UsageError
from unimodal.pods import gke, local, sky, slurm, tpu_vm
from unimodal.pods.description import Pod, device_count, split_flags
from unimodal.pods.volume import volume

CLOUDS = {"tpu-vm": tpu_vm, "gke": gke.CLOUD, "slurm": slurm.CLOUD, "sky": sky.CLOUD}
SHIPPING = ("tpu-vm", "sky")  # these copy the repository to the machines


def launch_pod(arguments: Sequence[str], check: Callable[[str, list[str], int], object], root: Path) -> int:
    """Run, show or end a pod; returns the exit code.

    `check(command, flags, devices)` raises UsageError for what the run would refuse on so many devices: better here than
    on a rented machine.
    """
    refuse_control_characters(arguments)
    pod, rest = split_flags(arguments)
    if pod.action == "run":
        check(pod.command, rest, device_count(pod))
    elif rest:
        raise UsageError(f"--action={pod.action} takes no {rest[0].split('=')[0]}")
    # In a repository, or in a copy of one, launch.py; where the package is installed, its console command.
    repository = (root / "launch.py").is_file()
    program = ("python", *(("launch.py",) if repository else ("-m", "unimodal")), pod.command, *rest)
    if not repository and pod.platform in SHIPPING and pod.action == "run":
        raise UsageError(
            f"--platform={pod.platform} takes the code along: run `python launch.py pod` in a clone of the repository"
        )
    if pod.platform == "local":
        volume(pod)
        if pod.action != "run":
            raise UsageError("--platform=local runs in the foreground: there is nothing to follow or to delete")
        return _show(local.dry_run(pod, program)) if pod.dry_run else local.run(pod, program, root)
    cloud = CLOUDS[pod.platform]
    if pod.dry_run:
        return _show(cloud.dry_run(pod, program))
    try:
        return cloud.launch(pod, program, root)
    except KeyboardInterrupt:  # the way to leave a log that is followed
        print(
            f"\nnothing of {pod.name} was stopped; --action=logs follows it, --action=delete ends it", file=sys.stderr
        )
        return 130


def refuse_control_characters(arguments: Sequence[str]) -> None:
    """Raises UsageError for a line break or the like: arguments become lines of scripts and manifests.

    What is given in --setup is shell, of one line or more.
    """
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "--setup" or word.startswith("--setup="):
            continue
        if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in word):
            raise UsageError(f"{word[:80]!r} holds a control character, such as a line break; leave it out")


def _show(text: str) -> int:
    print(text)
    return 0


__all__ = ["Pod", "launch_pod"]
