"""The demo's five tasks jointly, and each alone for the same number of its own steps, over seeds: docs/results.md.

    python benchmarks/joint_vs_solo.py --out=runs/joint_vs_solo --seeds=0,1,2

Runs `launch.py train` for whatever has no results.json yet, one after another, then prints the table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import demo  # noqa: E402


def train(config: str, workdir: Path, seed: int, *more: str) -> dict:
    results = workdir / "results.json"
    if not results.exists():
        command = [sys.executable, "launch.py", "train", f"--config={config}", f"--workdir={workdir}", *more]
        subprocess.run([*command, f"--config.seed={seed}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads(results.read_text())["tasks"]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "joint_vs_solo")
    parser.add_argument("--seeds", default="0,1,2")
    a = parser.parse_args()
    seeds = [int(seed) for seed in a.seeds.split(",")]
    config = demo.get_config()
    cycle = sum(round(task.weight) for task in config.tasks.values())
    joint = {seed: train("configs/demo.py", a.out / f"joint_{seed}", seed) for seed in seeds}
    print("| task | metric | baseline | joint: mean (seeds) | solo: mean (seeds) |\n|---|---|---|---|---|")
    for name, task in config.tasks.items():
        steps = config.steps * round(task.weight) // cycle
        more = (
            f"--config.steps={steps}",
            f"--config.optimizer.warmup={max(1, config.optimizer.warmup * steps // config.steps)}",
        )
        solo = {s: train(f"configs/demo_solo.py:{name}", a.out / f"{name}_{s}", s, *more)[name] for s in seeds}
        together = [joint[seed][name] for seed in seeds]
        first = together[0]
        baseline = statistics.mean(result["baseline"] for result in together)
        arrow = "↑" if first["higher_is_better"] else "↓"
        print(
            f"| {name} ({steps} steps) | {first['metric']} {arrow} | {baseline:.3f} ({first['baseline_is']}) | "
            f"{spread([r['value'] for r in together])} | {spread([solo[s]['value'] for s in seeds])} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
