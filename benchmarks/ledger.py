"""What a ledger costs and what it survives, in numbers.

    python -m benchmarks.ledger damage [--count=1000]    flips, cuts and deletions of files in the store: is each one named
                                                         when it is read, and every tenth by `verify`?
    python -m benchmarks.ledger kills [--count=50]       kill -9 amid commit, merge and gc: is `verify` clean, is all there?
    python -m benchmarks.ledger writers [--count=20]     four processes that commit so often beside a gc: is no commit lost?
    python -m benchmarks.ledger cost [--millions=100]    bytes, time of a commit beside one file of the same weights, memory of a diff

Each prints its numbers, and exits with 1 where damage went unnamed, a commit was lost, or a limit was passed: a commit at most
1.2 times one safetensors file, ten commits that change a head at most 1.1 times the trunk and ten heads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from unimodal.errors import UsageError  # noqa: E402
from unimodal.ledger import Commit, Draft, Ledger, Manifest, changes, compare  # noqa: E402
from unimodal.ledger.upkeep import gc, verify  # noqa: E402


def commit(ledger: Ledger, arrays: Mapping[str, np.ndarray], message: str, branch: str = "main") -> Commit:
    with ledger.writing():
        tensors = ledger.add((f"parameters.{name}", array, ()) for name, array in arrays.items())
        return ledger.record(Draft(Manifest(tensors)), message, branch)


def weights(rng: np.random.Generator, count: int, size: int = 64) -> dict[str, np.ndarray]:
    return {f"layer{i}": rng.normal(size=(size, size)).astype(np.float32) for i in range(count)}


# --- damage -----------------------------------------------------------------------------------------------------------


def damage(count: int, folder: Path) -> bool:
    """Harm one file at a time, in a way drawn by chance; reading its tensor must name it, and of every tenth also `verify`."""
    rng, ledger = random.Random(0), Ledger.create(folder / "ledger")
    made = commit(ledger, weights(np.random.default_rng(0), 20), "all")
    users = {entry.chunks[0]: name for name, entry in made.manifest.tensors.items()}
    seen: Counter[str] = Counter()
    for number in range(count):
        chunk = rng.choice(sorted(users))
        file = ledger.store.file(chunk)
        whole, kind = file.read_bytes(), rng.choice(["flip", "cut", "delete"])
        if kind == "flip":
            place = rng.randrange(len(whole))
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        elif kind == "cut":
            file.write_bytes(whole[: rng.randrange(len(whole))])
        else:
            file.unlink()
        seen[f"{kind}: {_named(ledger, made, users[chunk], chunk, number % 10 == 0)}"] += 1
        file.write_bytes(whole)
    print("\n".join(f"{count:5} {what}" for what, count in sorted(seen.items())))
    return all(what.endswith(" named") for what in seen)


def _named(ledger: Ledger, made: Commit, name: str, chunk: str, everything: bool) -> str:
    try:
        made.read(name)
        return "READ AS IF NOTHING WERE"
    except UsageError as error:
        if chunk not in str(error) or name not in str(error):
            return f"NOT NAMED ({error})"
    if everything and [chunk in fault for fault in verify(ledger).faults] != [True]:
        return "NOT FOUND BY VERIFY"
    return "named"


# --- kills ------------------------------------------------------------------------------------------------------------


def busy(path: str, ready: Any, said: Any) -> None:
    """Commit, merge and collect garbage for ever, and say of each commit that it is made."""
    os.setpgrp()
    ledger, rng = Ledger(path), np.random.default_rng()
    ready.set()
    while True:
        said.send(commit(ledger, weights(rng, 8), "work", "work").id)
        said.send(changes.merge(ledger, ["work"], "main", changes.Merging("mean"))[0].id)
        gc(ledger)


def kills(count: int, folder: Path) -> bool:
    """Kill such a process at instants spread over a few of its rounds; then verify, and look for what it said it had made."""
    ledger, rng = Ledger.create(folder / "ledger"), np.random.default_rng(1)
    commit(ledger, weights(rng, 8), "first")
    ledger.branch("work", "main")
    context, said, faults, lost, torn = multiprocessing.get_context("fork"), 0, 0, 0, 0
    for number in range(count):
        ready, (ours, theirs) = context.Event(), context.Pipe(duplex=False)
        child = context.Process(target=busy, args=(str(ledger.path), ready, theirs))
        child.start()
        theirs.close()
        ready.wait()
        time.sleep(0.1 + 1.4 * number / count)
        os.killpg(child.pid or 0, signal.SIGKILL)
        child.join()
        made = list(_received(ours))
        found = verify(ledger)
        there = {each.id for each in ledger.history()}
        said, faults, torn = said + len(made), faults + len(found.faults), torn + found.torn
        lost += len(set(made) - there)
        for fault in found.faults:
            print(fault)
        commit(ledger, weights(rng, 1), "and it goes on", "work")  # nothing is locked
    print(
        f"{count} kills: {said} commits were told of, {lost} lost; {faults} faults in verify; {torn} torn writes seen"
    )
    return not lost and not faults


def _received(pipe: Any) -> Iterator[str]:
    try:
        while True:
            yield pipe.recv()
    except EOFError:
        return


def writer(path: str, seed: int, count: int) -> None:
    ledger, rng = Ledger(path), np.random.default_rng(seed)
    for number in range(count):
        commit(ledger, weights(rng, 4), f"writer {seed}, {number}")


def writers(count: int, folder: Path) -> bool:
    """Four processes commit to one branch while this one collects garbage; every commit must be in its history."""
    ledger, context = Ledger.create(folder / "ledger"), multiprocessing.get_context("fork")
    busy = [context.Process(target=writer, args=(str(ledger.path), seed, count)) for seed in range(4)]
    for one in busy:
        one.start()
    while any(one.is_alive() for one in busy):
        gc(ledger)  # takes nothing that somebody is about to name
    wanted = {f"writer {seed}, {number}" for seed in range(4) for number in range(count)}
    lost = wanted - {each.subject for each in ledger.history(["main"])}
    faults = verify(ledger).faults
    print(f"4 writers, {len(wanted)} commits: {len(lost)} lost, {len(faults)} faults")
    return not lost and not faults and not any(one.exitcode for one in busy)


# --- cost -------------------------------------------------------------------------------------------------------------


def cost(millions: int, folder: Path) -> bool:
    """Time of a commit, bytes of ten that change a head, and memory of a diff."""
    from safetensors.numpy import save_file

    rng, side = np.random.default_rng(0), 1024
    count = millions * 1_000_000 // (side * side)
    arrays = {f"layer{i}": rng.normal(size=(side, side)).astype(np.float32) for i in range(count)}
    arrays["head"] = rng.normal(size=(side, 64)).astype(np.float32)
    size = sum(array.nbytes for array in arrays.values())

    def written() -> None:
        save_file(arrays, folder / "whole.safetensors")
        with (folder / "whole.safetensors").open("rb") as file:
            os.fsync(file.fileno())

    ledger, times = Ledger.create(folder / "ledger"), {"file": [], "commit": [], "nothing new": []}
    for number in range(3):
        times["file"].append(_seconds(written))
        other = Ledger.create(folder / f"fresh{number}")
        times["commit"].append(_seconds(lambda other=other: commit(other, arrays, "all")))
        times["nothing new"].append(_seconds(lambda other=other: commit(other, arrays, "again")))
    best = {name: min(values) for name, values in times.items()}
    print(f"{size / 1e6:.0f} MB: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in best.items()))
    ratio = best["commit"] / best["file"]
    print(f"a commit takes {ratio:.2f} times one safetensors file (both with fsync)")

    commit(ledger, arrays, "all")
    for number in range(10):
        arrays["head"] = arrays["head"] + rng.normal(size=arrays["head"].shape).astype(np.float32)
        commit(ledger, arrays, f"head {number}")
    stored = sum(path.stat().st_size for path in ledger.path.rglob("*") if path.is_file())
    head = arrays["head"].nbytes
    share = stored / (size - head + 11 * head)
    print(f"a trunk and eleven heads: {stored / 1e6:.1f} MB in all, {share:.4f} times their bytes")

    moved = {name: array + np.float32(0.01) for name, array in arrays.items()}
    commit(ledger, moved, "all of it moved")
    code = f"import benchmarks.ledger as b; b.compared({str(ledger.path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return ratio <= 1.2 and share <= 1.1


def compared(path: str) -> None:
    """Print the memory of a diff of the last two commits, beside what was used before."""
    ledger, before = Ledger(path), peak()
    began = time.perf_counter()
    found = compare.changes(ledger.commit("main~1"), ledger.commit("main"))
    took, after = time.perf_counter() - began, peak()
    largest = max(entry.bytes for entry in ledger.commit("main").manifest.tensors.values())
    grown = (after - before) * 1024
    print(
        f"a diff of {len(found)} tensors takes {took:.1f} s and {grown / 1e6:.0f} MB beside the {before / 1024:.0f} MB of "
        f"before: {grown / largest:.1f} times the largest tensor"
    )


def peak() -> int:
    """The most memory that this program has had, in kB; `getrusage` would count its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _seconds(run: Any) -> float:
    os.sync()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("damage", "kills", "writers", "cost"))
    parser.add_argument("--count", type=int)
    parser.add_argument("--millions", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "damage":
            fine = damage(given.count or 1000, Path(folder))
        elif given.what == "kills":
            fine = kills(given.count or 50, Path(folder))
        elif given.what == "writers":
            fine = writers(given.count or 20, Path(folder))
        else:
            fine = cost(given.millions, Path(folder))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
