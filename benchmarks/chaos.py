"""Harms runs in every way that tests/reliability tries once, many times over, and counts what came of it.

    python -m benchmarks.chaos [--scale=1.0] [--seed=0] [--only=kills,full] [--own_process=5]

Scale 1: 50 kills, 100 signals, 200 flipped bits, 60 cut, 60 deleted and 60 swapped files of a checkpoint, 300 spoilt files
beside it, 30 sizes of a full disk, 20 pairs of writers, 2,000 spoilt directories of published models and 2,000 spoilt files
of data. Each ends in one of: equal (the weights of a run that nothing befell, bit for bit), refused (one line), read (the
file is none the worse, or nobody can tell), and what must not be: traceback, wrong (other weights without a word), lost (work
before the last checkpoint is gone), hang. The exit code is 1 if any of those was seen.

Runs are forked from a process that has imported everything; one in `own_process` starts afresh as a user's does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reliability"), str(ROOT / "tests")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])  # for the process that forks

import toy  # noqa: E402
from spoil import spoil  # noqa: E402
from spoil_data import DATA, read_all, write_data  # noqa: E402
from spoil_workdir import WORKDIR_FILES, read_workdir, write_workdir  # noqa: E402

from unimodal.errors import UsageError  # noqa: E402
from unimodal.interop.load import prepare  # noqa: E402
from unimodal.training.checkpoint import Checkpoints, saved_steps  # noqa: E402

STEPS = 12
PATIENCE = 300.0  # seconds for a child
BAD = ("traceback", "wrong", "lost", "hang")

Ending = tuple[int, str, str]
"""Exit code, output and errors; the error "hang" where it did not end."""
Way = Callable[[Path, random.Random], str]


class Child:
    """A run in a process of its own: forked, or started afresh."""

    def __init__(self, workdir: Path, afresh: bool, **options: Any):
        self._log = workdir.parent / f"{workdir.name}.{time.monotonic_ns()}"
        given = {"steps": STEPS, **options}
        if afresh:
            command = [sys.executable, str(Path(toy.__file__)), str(workdir), json.dumps(given)]
            pipe = subprocess.PIPE
            self._process: Any = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
        else:
            context: Any = multiprocessing.get_context("forkserver")
            self._process = context.Process(target=_forked, args=(str(workdir), given, str(self._log)))
            self._process.start()

    def code(self, patience: float = 0.0) -> int | None:
        """The exit code, after so many seconds at most; None: it still runs."""
        if isinstance(self._process, subprocess.Popen):
            try:
                return self._process.wait(patience)
            except subprocess.TimeoutExpired:
                return None
        self._process.join(patience)
        return self._process.exitcode

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def ended(self) -> Ending:
        if isinstance(self._process, subprocess.Popen):
            try:
                out, err = self._process.communicate(timeout=PATIENCE)
                return self._process.returncode, out, err
            except subprocess.TimeoutExpired:
                self._process.kill()
                return -1, "", "hang"
        if (code := self.code(PATIENCE)) is None:
            self._process.kill()
            return -1, "", "hang"
        return code, Path(f"{self._log}.out").read_text(), Path(f"{self._log}.err").read_text()


def _forked(workdir: str, options: dict[str, Any], log: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a program starts, and not as what forks
    code: Any = 70
    try:
        toy.program_of(workdir, options)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def broken_off(workdir: Path, whole: str, codes: tuple[int, ...], ending: Ending) -> str:
    """What came of a run that was broken off, and of the same command after that."""
    code, out, err = ending
    if err == "hang":
        return "hang"
    if "Traceback" in err or code not in (0, *codes):
        print(f"  code {code}: {err[-300:]}", flush=True)
        return "traceback"
    before = saved_steps(workdir)
    code, out, err = Child(workdir, False).ended()
    if err == "hang" or code:
        print(f"  again, code {code}: {err[-300:]}", flush=True)
        return "hang" if err == "hang" else "traceback"
    if before and f"after step {before[-1]}" not in out:
        return "lost"
    return "equal" if out.split()[-1] == whole else "wrong"


def harmed(scratch: Path, whole: str, chance: random.Random, afresh: bool, *numbers: int) -> str:
    """Signals after a moment, one for each of `numbers`."""
    process = Child(scratch / "run", afresh, slow=0.05)
    deadline = time.monotonic() + PATIENCE
    while not saved_steps(scratch / "run") and process.code() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for number in numbers:
        time.sleep(chance.random() * 0.4)
        process.send(number)
    return broken_off(scratch / "run", whole, (75, 130, -signal.SIGKILL, -signal.SIGTERM), process.ended())


def full_disk(scratch: Path, whole: str, chance: random.Random) -> str:
    """No file may grow beyond some size from some step on. What the run says goes into a pipe, which no disk limits."""
    limit = int(10 ** (1 + 4 * chance.random()))
    process = Child(scratch / "run", True, limit=limit, at=chance.randrange(1, STEPS - 2))
    return broken_off(scratch / "run", whole, (74,), process.ended())


def two_writers(scratch: Path, whole: str, chance: random.Random, afresh: bool) -> str:
    """Two runs in one workdir, the second up to a second later: one trains, and the other is refused in a line."""
    first = Child(
        scratch / "run", afresh, slow=0.5
    )  # it must still train when the second has started, on a busy machine
    time.sleep(chance.random())
    endings = [process.ended() for process in (first, Child(scratch / "run", False, slow=0.1))]
    if any(err == "hang" for _, _, err in endings):
        return "hang"
    refused = [err for code, _, err in endings if code == 2]
    if len(refused) != 1 or "is in use by process" not in refused[0] or refused[0].count("\n") != 1:
        print(f"  {[(code, err[-300:]) for code, _, err in endings]}", flush=True)
        return "traceback"
    (said,) = [out for code, out, _ in endings if code == 0] or [""]
    return "equal" if said.split()[-1:] == [whole] else "wrong"


def damaged(scratch: Path, good: Path, chance: random.Random, harm: Callable[[Path, random.Random], None]) -> str:
    """Harm one file of the latest checkpoint, and restore it."""
    workdir = Path(shutil.copytree(good, scratch / "run"))
    latest = workdir / "checkpoints" / str(STEPS)
    harm(chance.choice([path for path in sorted(latest.rglob("*")) if path.is_file()]), chance)
    came = judged("", lambda: weights(restored(workdir)))
    return came if isinstance(came, str) else ("equal" if came == weights(restored(good)) else "wrong")


def exchanged(scratch: Path, good: Path) -> str:
    """The latest checkpoint and the one before under each other's names."""
    workdir = Path(shutil.copytree(good, scratch / "run"))
    one, two = (workdir / "checkpoints" / str(step) for step in (STEPS - 1, STEPS))
    one.rename(scratch / "one")
    two.rename(one)
    (scratch / "one").rename(two)
    return "wrong" if not isinstance(came := judged("", lambda: weights(restored(workdir))), str) else came


def judged(what: str, read: Callable[[], Any]) -> Any:
    """What is read; or "refused" where that is one line, else "traceback"."""
    try:
        return read()
    except UsageError as error:
        if "\n" not in str(error):
            return "refused"
        print(f"  {what}: {str(error)[:200]!r}", flush=True)
        return "traceback"
    except Exception as error:
        print(f"  {what}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        print("   ", traceback.format_tb(error.__traceback__)[-1].strip().replace("\n", " "), flush=True)
        return "traceback"


def restored(workdir: Path) -> Any:
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(toy.program().abstract_state())[0]
    checkpoints.close()
    return state


def weights(state: Any) -> bytes:
    import jax
    import numpy as np

    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content) + 1)])


def swap(path: Path, chance: random.Random) -> None:
    """Exchange the file with another of its checkpoint, or put the one of the same name from another checkpoint there."""
    latest = next(parent for parent in path.parents if parent.parent.name == "checkpoints")
    older = latest.parent / str(int(latest.name) - 1) / path.relative_to(latest)
    if chance.random() < 0.5 and older.is_file():
        path.write_bytes(older.read_bytes())
        return
    other = chance.choice([each for each in sorted(latest.rglob("*")) if each.is_file() and each != path])
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def foreign(scratch: Path, sources: list[Path], chance: random.Random) -> str:
    what = spoil(chance.choice(sources), scratch / "spoilt", chance)
    came = judged(what, lambda: prepare(scratch / "spoilt"))
    return came if isinstance(came, str) else "read"


def beside(scratch: Path, good: Path, chance: random.Random) -> str:
    """Harm a file of a workdir that is no checkpoint, and read all that a command reads there."""
    workdir = Path(shutil.copytree(good, scratch / "run"))
    name = chance.choice(WORKDIR_FILES)
    chance.choice((flip, cut, noise))(workdir / name, chance)
    came = judged(name, lambda: read_workdir(workdir))
    return came if isinstance(came, str) else "read"


def data(scratch: Path, good: Path, chance: random.Random) -> str:
    """Harm a file of data, and read every record of it."""
    kind = chance.choice(sorted(DATA))
    folder = Path(shutil.copytree(good / kind, scratch / kind))
    path = chance.choice([each for each in sorted(folder.rglob("*")) if each.is_file()])
    chance.choice((flip, cut, noise))(path, chance)
    came = judged(f"{kind}, {path.name}", lambda: read_all(kind, folder))
    return came if isinstance(came, str) else "read"


def noise(path: Path, chance: random.Random) -> None:
    """Some bytes anywhere, by others."""
    content = bytearray(path.read_bytes())
    for _ in range(chance.randrange(1, 9) if content else 0):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="ways whose names begin so, separated by commas (default: all)")
    parser.add_argument("--own_process", type=int, default=5, help="one run in so many starts afresh")
    given = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["toy", "unimodal.command.runs"])
    with tempfile.TemporaryDirectory(prefix="unimodal-chaos-") as folder:
        os.environ["UNIMODAL_CACHE"] = f"{folder}/cache"
        bad = 0
        for name, (count, way) in ways(Path(folder), given.own_process).items():
            if given.only and not name.startswith(tuple(given.only.split(","))):
                continue
            seen: Counter[str] = Counter()
            began = time.monotonic()
            for number in range(max(1, round(count * given.scale))):
                scratch = Path(tempfile.mkdtemp(dir=folder))
                seen[way(scratch, random.Random(f"{given.seed} {name} {number}"))] += 1
                shutil.rmtree(scratch, ignore_errors=True)
            bad += sum(seen[each] for each in BAD)
            told = ", ".join(f"{n} {w}" for w, n in seen.most_common())
            print(f"{name:<22} {sum(seen.values()):>5}  {told} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{bad} of them must not be" if bad else "none of them must not be")
    return 1 if bad else 0


def ways(folder: Path, own_process: int) -> dict[str, tuple[int, Way]]:
    """How often at scale 1, and what is done with a scratch folder and a source of chance."""
    good = folder / "good"
    code, out, err = Child(good, True).ended()
    assert code == 0, err
    whole = out.split()[-1]
    write_workdir(folder / "workdir")
    write_data(folder / "data")
    sources = sorted(p.parent for p in (ROOT / "tests" / "reference" / "interop").glob("*/model.safetensors"))
    kill, term, interrupt = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
    afresh = lambda c: c.randrange(own_process) == 0  # noqa: E731
    return {
        "flipped bits": (200, lambda s, c: damaged(s, good, c, flip)),
        "cut files": (60, lambda s, c: damaged(s, good, c, cut)),
        "deleted files": (60, lambda s, c: damaged(s, good, c, lambda path, _: path.unlink())),
        "swapped files": (60, lambda s, c: damaged(s, good, c, swap)),
        "swapped checkpoints": (1, lambda s, c: exchanged(s, good)),
        "files beside them": (300, lambda s, c: beside(s, folder / "workdir", c)),
        "models": (2000, lambda s, c: foreign(s, sources, c)),
        "data": (2000, lambda s, c: data(s, folder / "data", c)),
        "kills": (50, lambda s, c: harmed(s, whole, c, afresh(c), kill)),
        "SIGTERM": (25, lambda s, c: harmed(s, whole, c, afresh(c), term)),
        "SIGTERM, SIGTERM": (25, lambda s, c: harmed(s, whole, c, afresh(c), term, term)),
        "SIGINT": (25, lambda s, c: harmed(s, whole, c, afresh(c), interrupt)),
        "SIGINT, SIGINT": (25, lambda s, c: harmed(s, whole, c, afresh(c), interrupt, interrupt)),
        "full disks": (30, lambda s, c: full_disk(s, whole, c)),
        "two writers": (20, lambda s, c: two_writers(s, whole, c, afresh(c))),
    }


if __name__ == "__main__":
    sys.exit(main())
