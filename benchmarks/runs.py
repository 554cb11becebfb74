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


def train(config: str, workdir: Path, seed: int, *more: str) -> dict[str, Any]:
    """What results.json says of each task. An interrupted run goes on where it stopped."""
    results = workdir / "results.json"
    if not results.exists():
        command = [sys.executable, "launch.py", "train", f"--config={config}", f"--workdir={workdir}", *more]
        subprocess.run([*command, f"--config.seed={seed}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads(results.read_text(encoding="utf-8"))["tasks"]


def spread(values: Sequence[float]) -> str:
    """The mean, and each seed's value."""
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def metric(result: dict[str, Any]) -> str:
    return f"{result['metric']} {'↑' if result['higher_is_better'] else '↓'}"


def baseline(results: Sequence[dict[str, Any]]) -> str:
    return f"{statistics.mean(result['baseline'] for result in results):.3f} ({results[0]['baseline_is']})"
