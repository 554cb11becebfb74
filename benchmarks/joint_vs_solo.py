"""The demo's five tasks jointly, and each alone for the same number of its own steps, over seeds: docs/results.md.

    python benchmarks/joint_vs_solo.py --out=runs/joint_vs_solo --seeds=0,1,2

Runs `launch.py train` for whatever has no results.json yet, one after another, then prints the table in Markdown. Results that
other flags made are refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runs import ROOT, baseline, metric, spread, train

sys.path.insert(0, str(ROOT))

from configs import demo


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
        print(
            f"| {name} ({steps} steps) | {metric(together[0])} | {baseline(together)} | "
            f"{spread([r['value'] for r in together])} | {spread([solo[s]['value'] for s in seeds])} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
