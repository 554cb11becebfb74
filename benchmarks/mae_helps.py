"""Does MAE help a classifier? Fine-tuned from a pre-trained encoder against from scratch, with few labels.

    python benchmarks/mae_helps.py --out=runs/mae_helps --seeds=0,1,2 --labelled=200 --steps=200
    python benchmarks/mae_helps.py --out=runs/mae_helps_cifar10 --source=array_record:data/cifar10 --labelled=500 --steps=400

Both classify the same labelled pictures for the same number of steps at the same rate; only where the encoder starts differs.
Pre-training (configs/mae.py, tiny, seed 0; --pretrained names a run that is there already) reads all pictures and no label.
Runs `launch.py train` for whatever has no results.json yet, one after another, then prints a table in Markdown. Results that
other flags made are refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runs import ROOT, spread, train
from tiny_recipes import reading

# The classifier's encoder as configs/mae.py has it.
ENCODER = (
    "--config.backbones.shared.depth=4",
    "--config.tokenizers.image.patch=4",
    "--config.tokenizers.image.sincos=True",
    "--config.tokenizers.image.init_std=0.02",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mae_helps")
    parser.add_argument("--pretrained", type=Path, help="a workdir of configs/mae.py (default: made in --out)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--source", default="embedded:emoji", help="of both, pre-training and classes")
    parser.add_argument("--labelled", type=int, default=200, help="labelled pictures (of 1105 emoji)")
    parser.add_argument("--steps", type=int, default=200, help="of the classifier")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the classifier")
    a = parser.parse_args()
    before = a.pretrained or a.out / "mae"
    if a.pretrained is None:
        train("configs/mae.py:tiny", before, 0, *reading("mae", "tiny", a.source))
    few = (
        *reading("vit", "tiny", a.source),
        f"--config.tasks.vit.labelled={a.labelled}",
        f"--config.steps={a.steps}",
        "--config.eval_every=0",
    )
    few += (
        f"--config.optimizer.warmup={max(1, a.steps // 10)}",
        f"--config.optimizer.learning_rate={a.rate}",
        *ENCODER,
    )
    scratch, tuned = [], []
    for seed in (int(seed) for seed in a.seeds.split(",")):
        start = f"--config.init_from={before}"
        tuned.append(train("configs/vit.py:tiny", a.out / f"tuned_{seed}", seed, *few, start)["vit"])
        scratch.append(train("configs/vit.py:tiny", a.out / f"scratch_{seed}", seed, *few)["vit"])
    print(f"| ViT on {a.labelled} labelled pictures, {a.steps} steps, mean (seeds) | accuracy ↑ |\n|---|---|")
    for name, runs in (("from scratch", scratch), ("from MAE's encoder", tuned)):
        print(f"| {name} | {spread([r['value'] for r in runs])} |")
    print(f"| {scratch[0]['baseline_is']} | {scratch[0]['baseline']:.3f} |")


if __name__ == "__main__":
    main()
