"""The tiny size of recipes, with several seeds: the table of docs/results.md in Markdown.

    python benchmarks/tiny_recipes.py --out=runs/tiny --seeds=0,1,2
    python benchmarks/tiny_recipes.py gpt ctc
    python benchmarks/tiny_recipes.py vit mae imagegpt simclr moco moco:tiny_v2 swav
    python benchmarks/tiny_recipes.py simclr mae --out=runs/cifar10 --source=array_record:data/cifar10

With --source, tasks and evaluations read that in place of the data of their recipes. Trains whatever has no results.json yet in
--out, one after another. Evaluations that a recipe attaches have rows of their own.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from runs import ROOT, baseline, metric, spread, train

sys.path.insert(0, str(ROOT))

RECIPES = ("gpt", "bert", "bert_finetune", "sentence", "wav2vec2", "ctc", "audio_classifier")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "recipes", nargs="*", default=RECIPES, help="files in configs/, without .py; and :SIZE of another one"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "tiny")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--source", help="other data, for tasks and evaluations alike")
    a = parser.parse_args()
    seeds = [int(seed) for seed in a.seeds.split(",")]
    print("| recipe | metric | baseline | mean (seeds) |\n|---|---|---|---|")
    for recipe in a.recipes:
        file, _, size = recipe.partition(":")
        size = size or "tiny"
        more = reading(file, size, a.source) if a.source else ()
        folder = recipe.replace(":", "_")
        found = [train(f"configs/{file}.py:size={size}", a.out / f"{folder}_{seed}", seed, *more) for seed in seeds]
        for task in found[0]:
            results = [tasks[task] for tasks in found]
            values = spread([result["value"] for result in results])
            name = f"`{recipe}`" if task == file else f"`{recipe}`, {task}"
            print(f"| {name} | {metric(results[0])} | {baseline(results)} | {values} |", flush=True)


def reading(file: str, size: str, source: str) -> tuple[str, ...]:
    """The words that have everything in a config read `source`."""
    config = importlib.import_module(f"configs.{file}").get_config(f"size={size}")
    parts = [
        f"{kind}.{name}" for kind in ("tasks", "evaluations") for name in config[kind] if "source" in config[kind][name]
    ]
    return tuple(f"--config.{part}.source={source}" for part in parts)


if __name__ == "__main__":
    main()
