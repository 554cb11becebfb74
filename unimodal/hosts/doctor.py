"""`launch.py doctor`: checks that every host is fit for a run. One line per check, one sentence per host that fails it."""

from __future__ import annotations

import math
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimodal.errors import UsageError
from unimodal.hosts.facts import device_facts, run_facts
from unimodal.hosts.lifeline import Facts, Lifeline
from unimodal.hosts.peer import listed
from unimodal.storage import is_remote, one_line

STAGE_SECONDS = 30.0
CLOCK_SECONDS = 2.0  # apart: logs of hosts whose clocks differ more cannot be read side by side
DISK_BYTES = 5e9
SHARED_SECONDS = 5.0  # for the others' marks to be seen
PSUM_BYTES = {"cpu": 4 << 20, "gpu": 256 << 20, "tpu": 256 << 20}

Inspect = Callable[[Sequence[Facts]], tuple[str, str | None]]


class Examination:
    """Runs checks in all processes, one after another. Process 0 writes down the results."""

    def __init__(self, lifeline: Lifeline | None, say: Callable[[str], None]):
        self._lifeline, self._say = lifeline, say
        self.count = 1 if lifeline is None else lifeline.count
        self.process = 0 if lifeline is None else lifeline.process
        self.names = ["this process"] if lifeline is None else [lifeline.name(p) for p in range(lifeline.count)]
        self.complaints: list[str] = []

    def ask(self, question: str, facts: Facts, inspect: Inspect) -> None:
        """Run one check: `inspect(everyone)` gives an answer, and a complaint or None. Raises LostError that names who is silent."""

        def judge(everyone: Sequence[Facts]) -> None:
            answer, complaint = inspect(everyone)
            self.complaints += [complaint] if complaint else []
            self._say(f"{'NOT OK' if complaint else 'ok':<7} {question:<12} {complaint or answer}")

        if self._lifeline is None:
            judge([facts])
        else:
            self._lifeline.agree(question, facts, judge, STAGE_SECONDS)

    def close(self) -> None:
        """Raises UsageError, in every process, if any check had a complaint."""
        final = lambda _: "; ".join(self.complaints) or None  # noqa: E731
        if self._lifeline is not None:
            self._lifeline.agree("verdict", {}, final, STAGE_SECONDS)
        elif self.complaints:
            raise UsageError("; ".join(self.complaints))


def examine(
    lifeline: Lifeline | None,
    root: Path,
    config: Mapping[str, Any],
    workdir: epath.PathLike | None,
    say: Callable[[str], None],
    *,
    own: Sequence[Path] = (),
    psum_seconds: float = 60.0,
) -> None:
    """Run all checks, with a line of each for `say`. Raises UsageError or LostError with what is wrong, after the last line.

    `join` has checked already that code, config, versions and devices are the same, and that process 0 can be reached.
    """
    body = Examination(lifeline, say)
    facts = run_facts(root, config, str(workdir), own)
    packages = ", ".join(f"{name} {facts[name]}" for name in ("python", "jax", "jaxlib", "flax"))
    same = "the same in all" if body.count > 1 else "this process alone"
    said = "one" if lifeline is None else f"{body.count}, all in reach of process 0"
    body.ask("processes", {}, lambda _: (said, None))
    body.ask("code", {}, lambda _: (f"{facts['code']}{' and config' if config else ''}: {same}", None))
    body.ask("packages", {}, lambda _: (f"{packages}: {same}", None))
    kinds = device_facts()["devices"]
    body.ask("devices", {}, lambda everyone: (f"{kinds} in each of {len(everyone)}; {jax.device_count()} in all", None))
    body.ask("clock", {"now": time.time()}, lambda everyone: _clocks(everyone, body.names))
    if workdir is not None:
        _ask_of_workdir(body, epath.Path(workdir))
    body.ask("psum", _psum(psum_seconds), lambda everyone: _sums(everyone, body.names))
    body.close()


def check_shared(lifeline: Lifeline, workdir: epath.PathLike, say: Callable[[str], None]) -> None:
    """Run the quick checks, at the start of every run of several processes.

    `say` gets a line about clocks that differ, or a disk that is nearly full. Raises UsageError, in every process, unless
    the workdir is writable and the same for all.
    """
    body = Examination(lifeline, lambda _: None)
    body.ask("clock", {"now": time.time()}, lambda everyone: _clocks(everyone, body.names))
    _ask_of_workdir(body, epath.Path(workdir), serious := [])
    for complaint in body.complaints:
        if complaint not in serious:
            say(f"warning: {complaint}")
    body.complaints = serious
    body.close()


def _clocks(everyone: Sequence[Facts], names: Sequence[str]) -> tuple[str, str | None]:
    # All have just received the last verdict, so they read their clocks within milliseconds of each other.
    middle = float(np.median([facts["now"] for facts in everyone]))
    away = [facts["now"] - middle for facts in everyone]
    bad = [
        f"{names[p]} is {abs(a):.1f} s {'ahead' if a > 0 else 'behind'}"
        for p, a in enumerate(away)
        if abs(a) > CLOCK_SECONDS
    ]
    return f"within {max(map(abs, away)):.2f} s", f"clocks differ: {listed(bad)}" if bad else None


def _ask_of_workdir(body: Examination, workdir: epath.Path, serious: list[str] | None = None) -> None:
    """Check the workdir. `serious` collects the faults that would end a run early."""
    mark = _written(workdir, body.process)

    def free(everyone: Sequence[Facts]) -> tuple[str, str | None]:
        low = min(range(len(everyone)), key=lambda p: everyone[p]["free"])
        left = everyone[low]["free"]
        bad = not everyone[low]["error"] and left < DISK_BYTES
        return (
            "in a bucket" if left == math.inf else f"{left / 1e9:.0f} GB free or more",
            f"{body.names[low]} has {left / 1e9:.1f} GB left in {workdir}" if bad else None,
        )

    def writable(everyone: Sequence[Facts]) -> tuple[str, str | None]:
        bad = [f"{body.names[p]} cannot write in {workdir}: {f['error']}" for p, f in enumerate(everyone) if f["error"]]
        return f"{workdir} is writable", listed(bad) if bad else None

    body.ask("disk", mark, free)
    before = len(body.complaints)
    body.ask("workdir", mark, writable)
    seen = [] if mark["error"] else _marks(workdir, body.count)

    def shared(everyone: Sequence[Facts]) -> tuple[str, str | None]:
        if len(body.complaints) > before:  # who could not write there has been named already
            return "not asked", None
        views = [tuple(facts["seen"]) for facts in everyone]
        if all(len(set(view)) >= len(everyone) for view in views):
            return "all see what the others write", None
        usual, count = Counter(views).most_common(1)[0]
        odd = [body.names[p] for p, view in enumerate(views) if view != usual] if count > 1 else body.names
        return "", (
            f"{listed(odd)} cannot see in {workdir} what the others wrote: it must be one folder that all hosts share"
        )

    body.ask("shared", {"seen": seen}, shared)
    if serious is not None:
        serious += body.complaints[before:]
    if not mark["error"]:
        (workdir / f".doctor.{body.process}").unlink(missing_ok=True)


def _written(workdir: epath.Path, process: int) -> dict[str, Any]:
    try:
        if not is_remote(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        (workdir / f".doctor.{process}").write_text(uuid.uuid4().hex, encoding="utf-8")
        return {"error": None, "free": math.inf if is_remote(workdir) else shutil.disk_usage(workdir).free}
    except Exception as error:  # a bucket's client has errors of its own
        return {"error": one_line(error), "free": 0}


def _marks(workdir: epath.Path, count: int) -> list[int]:
    """List the processes whose marks are in the folder.

    In a folder that each machine has to itself, only our own is there. Network file systems may show others a bit later.
    """
    deadline = time.monotonic() + SHARED_SECONDS
    while True:
        seen = sorted({int(path.name.rsplit(".", 1)[1]) for path in workdir.glob(".doctor.*")})
        if len(seen) >= count or time.monotonic() > deadline:
            return seen
        time.sleep(0.2)


def _psum(seconds: float) -> dict[str, Any]:
    """Sum one number of each device, and time a large sum. A hang is a result too."""
    found: dict[str, Any] = {"error": f"has not finished within {seconds:.0f} s"}

    def work() -> None:
        try:
            found.update(_all_reduce(), error=None)
        except Exception as error:  # whatever the network's library says
            found["error"] = f"failed: {' '.join(str(error).split())[:200]}"

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(seconds)
    return dict(found)


def _all_reduce() -> dict[str, Any]:
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    count = jax.device_count()
    size = PSUM_BYTES.get(jax.default_backend(), 4 << 20) // 4
    split, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    ones = jax.jit(lambda: jnp.ones((count, size), jnp.float32), out_shardings=split)()
    total = jax.jit(lambda x: x.sum(axis=0), out_shardings=whole)
    value = float(np.asarray(total(ones).addressable_shards[0].data)[-1])
    times = []
    for _ in range(3):
        began = time.perf_counter()
        total(ones).block_until_ready()
        times.append(time.perf_counter() - began)
    return {"right": value == count, "seconds": min(times), "bytes": 4 * size}


def _sums(everyone: Sequence[Facts], names: Sequence[str]) -> tuple[str, str | None]:
    bad = [f"{names[p]} {f['error']}" for p, f in enumerate(everyone) if f["error"]]
    bad += [f"{names[p]} got a wrong sum" for p, f in enumerate(everyone) if not f["error"] and not f["right"]]
    if bad:
        return "", f"the sum over all devices: {listed(bad)}"
    seconds, size = max(f["seconds"] for f in everyone), everyone[0]["bytes"]
    return f"right; {size >> 20} MiB from each device in {seconds * 1e3:.1f} ms, {size / seconds / 1e9:.2f} GB/s", None
