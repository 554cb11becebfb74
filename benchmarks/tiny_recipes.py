"""The tiny size of recipes, with several seeds: the table of docs/results.md in Markdown.

    python benchmarks/tiny_recipes.py --out=runs/tiny --seeds=0,1,2
    python benchmarks/tiny_recipes.py gpt ctc
    python benchmarks/tiny_recipes.py vit mae imagegpt simclr moco swav

Trains whatever has no results.json yet in --out, one after another. Evaluations that a recipe attaches have rows of their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runs import ROOT, baseline, metric, spread, train

RECIPES = ("gpt", "bert", "bert_finetune", "sentence", "wav2vec2", "ctc", "audio_classifier")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="files in configs/, without .py")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "tiny")
    parser.add_argument("--seeds", default="0,1,2")
    a = parser.parse_args()
    seeds = [int(seed) for seed in a.seeds.split(",")]
    print("| recipe | metric | baseline | mean (seeds) |\n|---|---|---|---|")
    for recipe in a.recipes:
        config = f"configs/{recipe}.py:size=tiny"
        found = [train(config, a.out / f"{recipe}_{seed}", seed) for seed in seeds]
        for task in found[0]:
            results = [tasks[task] for tasks in found]
            values = spread([result["value"] for result in results])
            name = f"`{recipe}`" if task == recipe else f"`{recipe}`, {task}"
            print(f"| {name} | {metric(results[0])} | {baseline(results)} | {values} |", flush=True)


if __name__ == "__main__":
    main()
