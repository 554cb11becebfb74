"""The train step on a CPU with and without memory in pages of 2 MB, each in processes of its own, in turns.

python benchmarks/huge_pages.py                                   # a small GPT: as it is, with lean attention, with light remat
python benchmarks/huge_pages.py --models=gpt2,vit_b --rounds=5
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE = ("--width=256", "--depth=4", "--length=128", "--batch=4", "--config.tokenizers.text.vocabulary=8192")
VARIANTS = {  # beside the pages: how attention and its backward pass are computed
    "remat=none": ("--remat=none", "--config.backbones.*.attention=xla"),
    "remat=none, lean": ("--remat=none", "--config.backbones.*.attention=lean"),
    "remat=light": ("--remat=light", "--config.backbones.*.attention=xla"),
}
PAGES = {"usual pages": "", "pages of 2 MB": "glibc.malloc.hugetlb=1"}


def milliseconds(model: str, variant: str, tunables: str) -> float:
    """One process's median of a step."""
    line = [sys.executable, "benchmarks/train_step.py", f"--models={model}", "--no-torch", "--rounds=7", *SIZE]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": tunables, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*line, *VARIANTS[variant]], cwd=ROOT, env=environment, capture_output=True, text=True)
    found = re.search(rf"^\| {model} \| [^|]+ \| [^|]+ \| ([\d.,]+) \|", done.stdout, re.MULTILINE)
    if found is None:
        sys.exit(f"error: no row of {model}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(found[1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="gpt2")
    parser.add_argument("--variants", default="; ".join(VARIANTS), help="of these, divided by semicolons")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print("| model | variant | pages | ms a step: median (range) |\n|---|---|---|---|")
    for model in given.models.split(","):
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(given.rounds):
            for variant in given.variants.split("; "):
                for pages, tunables in PAGES.items():
                    found = milliseconds(model, variant, tunables)
                    times.setdefault((variant, pages), []).append(found)
                    print(f"{model}, {variant}, {pages}: {found:.1f} ms", file=sys.stderr, flush=True)
        for (variant, pages), all_found in times.items():
            middle, least, most = statistics.median(all_found), min(all_found), max(all_found)
            print(f"| {model} | {variant} | {pages} | {middle:.1f} ({least:.1f} to {most:.1f}) |", flush=True)


if __name__ == "__main__":
    main()
