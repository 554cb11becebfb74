"""Moves checkpoints out of the way of a run that goes on from an older one. Nothing is deleted."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from etils import epath
from jax.experimental import multihost_utils

from unimodal.storage import is_remote

FOLDER = "set_aside"


def move_aside(workdir: epath.Path, steps: Sequence[int]) -> list[epath.Path]:
    """WORKDIR/checkpoints/STEP → WORKDIR/set_aside/STEP, or STEP.2 where there is one already. Process 0 does it."""
    moved = []
    for step in steps:
        there = workdir / FOLDER / str(step)
        count = 1
        while there.exists():
            count += 1
            there = workdir / FOLDER / f"{step}.{count}"
        if jax.process_index() == 0:
            _move(workdir / "checkpoints" / str(step), there)
        moved.append(there)
    if steps and jax.process_count() > 1:
        multihost_utils.sync_global_devices("set_aside")  # or another would see the old ones still
    return moved


def _move(source: epath.Path, target: epath.Path) -> None:
    if not is_remote(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        return
    for path in source.glob("**/*"):  # a bucket has no folders: object by object, and the first is gone last
        if path.is_file():
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    source.rmtree()
