"""Harms runs in every way that tests/reliability tries once, many times over, and counts what came of it.

    python -m benchmarks.chaos [--scale=1.0] [--seed=0]

Scale 1: 50 kills, 50 signals, 200 flipped bits, 60 cut and 60 deleted files, 30 sizes of a full disk, 2,000 spoilt
directories. Each run ends in one of: equal (the weights of a run that nothing befell, bit for bit), refused (one line), and
what must not be: traceback, wrong (other weights without a word), lost (work before the last checkpoint is gone), hang.
The exit code is 1 if any of those was seen.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reliability")]

import toy  # noqa: E402
from spoil import spoil  # noqa: E402

from unimodal.errors import UsageError  # noqa: E402
from unimodal.interop.load import prepare  # noqa: E402
from unimodal.training.checkpoint import Checkpoints, saved_steps  # noqa: E402

STEPS = 12
PATIENCE = 300.0  # seconds for a child
BAD = ("traceback", "wrong", "lost", "hang")


def child(workdir: Path, **options: Any) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    command = [sys.executable, str(Path(toy.__file__)), str(workdir), json.dumps({"steps": STEPS, **options})]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return -1, "", "hang"


def broken_off(workdir: Path, whole: str, codes: tuple[int, ...], ending: tuple[int, str, str]) -> str:
    """What came of a run that was broken off, and of the same command after that."""
    code, out, err = ending
    if err == "hang":
        return "hang"
    if "Traceback" in err or code not in (0, *codes):
        return "traceback"
    before = saved_steps(workdir)
    code, out, err = ended(child(workdir))
    if err == "hang" or code:
        return "hang" if err == "hang" else "traceback"
    if before and f"after step {before[-1]}" not in out:
        return "lost"
    return "equal" if out.split()[-1] == whole else "wrong"


def harmed(scratch: Path, whole: str, chance: random.Random, *numbers: int) -> str:
    """Signals after a moment, one for each of `numbers`."""
    process = child(scratch / "run", slow=0.05)
    deadline = time.monotonic() + PATIENCE
    while not saved_steps(scratch / "run") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for number in numbers:
        time.sleep(chance.random() * 0.4)
        process.send_signal(number)
    return broken_off(scratch / "run", whole, (75, 130, -signal.SIGKILL, -signal.SIGTERM), ended(process))


def full_disk(scratch: Path, whole: str, chance: random.Random) -> str:
    limit = int(10 ** (1 + 4 * chance.random()))
    process = child(scratch / "run", limit=limit, at=chance.randrange(1, STEPS - 2))
    return broken_off(scratch / "run", whole, (74,), ended(process))


def damaged(scratch: Path, good: Path, chance: random.Random, harm: Callable[[Path, random.Random], None]) -> str:
    """Harm one file of the latest checkpoint, and restore it."""
    workdir = Path(shutil.copytree(good, scratch / "run"))
    latest = workdir / "checkpoints" / str(STEPS)
    harm(chance.choice([path for path in sorted(latest.rglob("*")) if path.is_file()]), chance)
    try:
        checkpoints = Checkpoints(workdir)
        state, _, _ = checkpoints.restore(toy.program().abstract_state())
        checkpoints.close()
    except UsageError as error:
        return "traceback" if "\n" in str(error) else "refused"
    except Exception as error:
        print(f"  {type(error).__name__}: {str(error)[:200]}", flush=True)
        return "traceback"
    return "equal" if weights(state) == weights(restored(good)) else "wrong"


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


def foreign(scratch: Path, sources: list[Path], chance: random.Random) -> str:
    what = spoil(chance.choice(sources), scratch / "spoilt", chance)
    try:
        prepare(scratch / "spoilt")
        return "loads"
    except UsageError as error:
        return "traceback" if "\n" in str(error) else "refused"
    except Exception as error:
        print(f"  {what}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return "traceback"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unimodal-chaos-") as folder:
        good = Path(folder) / "good"
        code, out, err = ended(child(good))
        assert code == 0, err
        whole = out.split()[-1]
        sources = sorted(p.parent for p in (ROOT / "tests" / "reference" / "interop").glob("*/model.safetensors"))
        kill, term, interrupt = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
        ways: dict[str, tuple[int, Callable[[Path, random.Random], str]]] = {
            "flipped bits": (200, lambda s, c: damaged(s, good, c, flip)),
            "cut files": (60, lambda s, c: damaged(s, good, c, cut)),
            "deleted files": (60, lambda s, c: damaged(s, good, c, lambda path, _: path.unlink())),
            "spoilt directories": (2000, lambda s, c: foreign(s, sources, c)),
            "kills": (50, lambda s, c: harmed(s, whole, c, kill)),
            "SIGTERM": (20, lambda s, c: harmed(s, whole, c, term)),
            "SIGTERM, SIGTERM": (15, lambda s, c: harmed(s, whole, c, term, term)),
            "SIGINT, SIGINT": (15, lambda s, c: harmed(s, whole, c, interrupt, interrupt)),
            "full disks": (30, lambda s, c: full_disk(s, whole, c)),
        }
        bad = 0
        for name, (count, way) in ways.items():
            seen: Counter[str] = Counter()
            for number in range(max(1, round(count * given.scale))):
                scratch = Path(tempfile.mkdtemp(dir=folder))
                seen[way(scratch, random.Random(f"{given.seed} {name} {number}"))] += 1
                shutil.rmtree(scratch, ignore_errors=True)
            bad += sum(seen[each] for each in BAD)
            print(f"{name:<20} {sum(seen.values()):>5}  {', '.join(f'{n} {w}' for w, n in seen.items())}", flush=True)
    print(f"{bad} of them must not be" if bad else "none of them must not be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
