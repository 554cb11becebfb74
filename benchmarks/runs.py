"""Runs of `launch.py train` that a table is made of: those that have no results yet are made, one after another."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MADE_BY = "made_by.json"  # in a workdir, beside results.json: the words of the command that made it


def train(config: str, workdir: Path, seed: int, *more: str) -> dict[str, Any]:
    """What results.json says of each task. An interrupted run goes on where it stopped.

    Results that another command made, or nobody knows which, end the program: they would stand under a wrong heading.
    """
    results, made_by = workdir / "results.json", workdir / MADE_BY
    words = [f"--config={config}", *more, f"--config.seed={seed}"]
    if not results.exists():
        command = [sys.executable, "launch.py", "train", f"--workdir={workdir}", *words]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        made_by.write_text(json.dumps(words), encoding="utf-8")
    elif not made_by.exists():
        raise SystemExit(f"error: {results} does not say what made it; give another --out, or remove the folder")
    elif (known := json.loads(made_by.read_text(encoding="utf-8"))) != words:
        before, now = (" ".join(w for w in a if w not in b) or "nothing" for a, b in ((known, words), (words, known)))
        raise SystemExit(f"error: {results} was made with {before} where this asks for {now}; give another --out")
    return json.loads(results.read_text(encoding="utf-8"))["tasks"]


def spread(values: Sequence[float]) -> str:
    """The mean, and each seed's value."""
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def metric(result: dict[str, Any]) -> str:
    return f"{result['metric']} {'↑' if result['higher_is_better'] else '↓'}"


def baseline(results: Sequence[dict[str, Any]]) -> str:
    return f"{statistics.mean(result['baseline'] for result in results):.3f} ({results[0]['baseline_is']})"
