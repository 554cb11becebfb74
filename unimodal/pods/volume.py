"""Where the workdir of a run lies on a pod: in a bucket, on a volume that is mounted, or nowhere that would last."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from unimodal.errors import UsageError
from unimodal.pods.description import Pod

BUCKET = r"gs://[a-z0-9][-_.a-z0-9]*[a-z0-9]"
CLAIM = r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?"


@dataclass(frozen=True)
class Volume:
    """Storage that every host sees."""

    source: str  # a bucket (gs://…) or the name of a PersistentVolumeClaim
    path: str  # where it is mounted

    @property
    def bucket(self) -> str | None:
        """Its name, without gs://."""
        return self.source.removeprefix("gs://") if self.source.startswith("gs://") else None


def volume(pod: Pod) -> Volume | None:
    """--volume=gs://BUCKET:/runs or --volume=CLAIM:/runs. Raises UsageError."""
    if pod.volume is None:
        return None
    if pod.platform not in ("gke", "sky"):
        raise UsageError(f"--volume is for gke and sky; for {pod.platform} mount it in --setup, or use a gs:// workdir")
    source, _, path = pod.volume.rpartition(":")
    known = BUCKET if pod.platform == "sky" else f"({BUCKET}|{CLAIM})"
    if not re.fullmatch(known, source) or not re.fullmatch(r"(/[-\w.]+)+", path):
        claim = "" if pod.platform == "sky" else ", or --volume=CLAIM:/runs for a PersistentVolumeClaim"
        raise UsageError(f"--volume={pod.volume}: give a bucket as --volume=gs://BUCKET:/runs{claim}")
    return Volume(source, path)


def workdir_of(program: Sequence[str]) -> str | None:
    """The value of --workdir in a command line of launch.py."""
    for word, following in zip(program, [*program[1:], ""], strict=True):
        if word == "--workdir":
            return following
        if word.startswith("--workdir="):
            return word.removeprefix("--workdir=")
    return None


def in_bucket(program: Sequence[str]) -> bool:
    """Whether the hosts need the package that reaches buckets."""
    return (workdir_of(program) or "").startswith("gs://")


def check_workdir(pod: Pod, program: Sequence[str], where: str) -> None:
    """Raises UsageError for a workdir on disks that hosts do not share, or that go with them. `where`: what has them.

    Who mounts something in --setup is trusted: the roll call of the run looks whether all see the same.
    """
    workdir, mounted = workdir_of(program), volume(pod)
    if workdir is None or workdir.startswith("gs://") or pod.setup:
        return
    if mounted is not None and PurePosixPath(workdir).is_relative_to(mounted.path):
        return
    if mounted is not None:
        raise UsageError(f"--workdir={workdir} is not on the volume, which is mounted at {mounted.path}")
    mount = " or --volume" if pod.platform in ("gke", "sky") else ""
    raise UsageError(
        f"--workdir={workdir} would be on {where}, and its checkpoints with it: give --workdir=gs://BUCKET/…, or mount "
        f"a folder that all hosts share with --setup{mount}"
    )
