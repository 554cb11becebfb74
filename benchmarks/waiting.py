"""Run what docs/performance.md has waiting for an accelerator, in its order, within ten minutes, and write the tables.

    python benchmarks/waiting.py --out=waiting.md              # a GPU; torch and transformers beside it if installed
    python benchmarks/waiting.py --out=waiting.md --dry        # the same scripts at toy sizes on this machine's CPU
    python benchmarks/waiting.py --out=waiting.md --only=kernels,steps

Each measurement is a process of its own with its own time limit. What fails or runs out of time is written down with
its last line, and the others go on. The file is written anew after each, so that nothing is lost.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = "benchmarks"


@dataclass(frozen=True)
class Waiting:
    """A measurement."""

    name: str
    about: str  # what it measures
    command: tuple[str, ...]  # without Python in front
    dry: tuple[str, ...]  # the same at toy sizes
    seconds: int  # that it may take
    needs: tuple[str, ...] = ()  # packages without which it is left out


STEP = f"{HERE}/train_step.py"
TOY = (
    "--width=64",
    "--depth=1",
    "--length=16",
    "--batch=2",
    "--rounds=1",
    "--no-torch",
    "--config.tokenizers.text.vocabulary=300",
)
WAITING = (
    Waiting(
        "kernels",
        "cuDNN with flags, windows, lengths and masks, and the other kernels: values, gradients, time",
        (f"{HERE}/kernels_agree.py",),
        (f"{HERE}/kernels_agree.py", "--rows=2", "--length=32", "--heads=2", "--head-size=8"),
        90,
    ),
    Waiting(
        "steps",
        "the train step of the papers' models beside transformers, eager",
        (STEP, "--models=gpt2,vit_b,clip_b,wav2vec2", "--rounds=3", "--no-compile"),
        (STEP, "--models=gpt2", *TOY),
        210,
    ),
    Waiting(
        "remat",
        "the same step with everything kept",
        (STEP, "--models=gpt2,vit_b", "--remat=none", "--rounds=3", "--no-torch"),
        (STEP, "--models=gpt2", "--remat=none", *TOY),
        80,
    ),
    Waiting(
        "checkpoints",
        "published architectures beside transformers, bfloat16",
        (f"{HERE}/interop_speed.py", "--device=cuda", "--dtype=bfloat16", "--batch=32", "--rounds=3", "--no-compile"),
        (f"{HERE}/interop_speed.py", "--models=gpt2", "--width=64", "--depth=1", "--length=16", "--rounds=1", "--no-compile"),
        90,
        ("torch", "transformers"),
    ),
    Waiting(
        "demo",
        "the five tasks of the demo in bfloat16, 200 steps",
        ("launch.py", "train", "--config=demo", "--workdir={scratch}/demo", "--config.steps=200",
         "--config.backbones.shared.dtype=bfloat16"),
        ("launch.py", "train", "--config=demo", "--workdir={scratch}/demo", "--config.steps=2", "--dry_run"),
        120,
    ),
)  # fmt: skip


def run(one: Waiting, dry: bool, scratch: Path, limit: float) -> tuple[str, float, str]:
    """Run a measurement; return how it ended, its seconds, and what it printed."""
    words = [word.format(scratch=scratch) for word in (one.dry if dry else one.command)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if dry:
        environment["JAX_PLATFORMS"] = "cpu"
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
        said, how = done.stdout, "done" if done.returncode == 0 else f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        said = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        how = f"stopped after {limit:.0f} s"
    return how, time.perf_counter() - began, said


def section(one: Waiting, dry: bool, how: str, took: float, said: str) -> str:
    """Markdown of one measurement: command, how it ended, its tables, and its last lines where it did not end well."""
    lines = said.splitlines()
    tables = "\n".join(line for line in lines if line.startswith("|")) or "no table"
    command = " ".join(one.dry if dry else one.command)
    last = "" if how == "done" else "\n\n```\n" + "\n".join(lines[-8:]) + "\n```"
    return f"## {one.name}: {one.about}\n`python {command}`: {how}, {took:.0f} s\n\n{tables}{last}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    parser.add_argument("--dry", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--only", help=f"of {', '.join(one.name for one in WAITING)}")
    parser.add_argument("--minutes", type=float, default=9.8, help="in all")
    given = parser.parse_args()
    names = [one.name for one in WAITING] if given.only is None else given.only.split(",")
    if unknown := set(names) - {one.name for one in WAITING}:
        parser.error(f"no measurement {', '.join(sorted(unknown))}; there is {', '.join(one.name for one in WAITING)}")
    began, sections, well = time.perf_counter(), [], True
    scratch = given.out.resolve().parent / f"{given.out.stem}-scratch"
    for one in (one for one in WAITING if one.name in names):
        left = 60 * given.minutes - (time.perf_counter() - began)
        if missing := [package for package in one.needs if importlib.util.find_spec(package) is None]:
            how, took, said = f"left out, {' and '.join(missing)} not installed", 0.0, ""
        elif left < 5:
            how, took, said = "left out, no time", 0.0, ""
        else:
            how, took, said = run(one, given.dry, scratch, min(one.seconds, left))
        well &= how == "done" or bool(missing)
        sections.append(section(one, given.dry, how, took, said))
        given.out.write_text("\n".join(sections), encoding="utf-8")
        print(f"{one.name}: {how}, {took:.0f} s", flush=True)
    print(f"{given.out}: {len(sections)} measurements in {time.perf_counter() - began:.0f} s")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
