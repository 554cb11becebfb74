"""Strategies against forgetting on one stream of tasks, beside training them jointly.

    python -m benchmarks.forgetting [--config=stream] [--seeds=1] [--strategies=fine_tuning,l2:10,ewc:100,replay:1] [FIELD=VALUE …]

A strategy is NAME or NAME:STRENGTH. For each it prints the score of every task at the end, how much of what the joint run gains
over the untrained model that is, and their mean; backward transfer, forgetting, and R. FIELD=VALUE changes the recipe.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def run(workdir: Path, config: str, *fields: str) -> dict[str, Any]:
    """Train, and give what results.json says, with the seconds that it took."""
    words = [f"--config={config}", f"--workdir={workdir}", *(f"--config.{field}" for field in fields)]
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(ROOT / "launch.py"), "train", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads((workdir / "results.json").read_text())
    rates = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {**found, "seconds": time.monotonic() - began, "rows": rates}


def shares(found: dict[str, Any], joint: dict[str, Any]) -> dict[str, float]:
    """How much of what joint training gains over the untrained model each task has at the end."""
    made = {}
    for name, row in found["tasks"].items():
        before, best = row["details"]["untrained"], joint["tasks"][name]["value"]
        made[name] = (row["value"] - before) / (best - before)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="stream")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--strategies", default="fine_tuning,l2:1,ewc:100,replay:1")
    parser.add_argument("fields", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            base = [*given.fields, f"seed={seed}"]
            joint = run(Path(folder) / f"joint{seed}", given.config, *base, "schedule=alternate")
            told(f"joint, seed {seed}", joint, joint)
            for word in given.strategies.split(","):
                name, _, strength = word.partition(":")
                more = [f"continual.strategy={name}", *([f"continual.strength={strength}"] if strength else [])]
                found = run(Path(folder) / f"{word}{seed}".replace(":", "_"), given.config, *base, *more)
                told(f"{word}, seed {seed}", found, joint)


def told(who: str, found: dict[str, Any], joint: dict[str, Any]) -> None:
    share = shares(found, joint)
    values = ", ".join(f"{n} {row['value']:.4g} ({share[n]:.0%})" for n, row in found["tasks"].items())
    more = found.get("continual")
    transfer = (
        "" if more is None else f"; backward {more['backward_transfer']:.3g}, forgetting {more['forgetting']:.3g}"
    )
    print(
        f"{who}: {values}; mean share {np.mean(list(share.values())):.1%}{transfer}; {found['seconds']:.0f} s",
        flush=True,
    )
    if more is not None:
        for name, row in zip(more["tasks"], more["matrix"], strict=True):
            print(f"    after {name}: " + "  ".join(f"{value:.4g}" for value in row), flush=True)


if __name__ == "__main__":
    main()
