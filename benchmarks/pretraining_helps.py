"""Does wav2vec 2.0 help CTC? Fine-tuned from a pre-trained encoder against from scratch, with few transcripts.

    python benchmarks/pretraining_helps.py --out=runs/pretraining_helps --seeds=0,1,2 --labelled=60 --pretraining=2800 --steps=600

Both read the same transcripts for the same number of steps at the same rate; only where the encoder starts differs.
Pre-training reads all recordings and no transcript. Runs `launch.py train` for whatever has no results.json yet, one
after another, then prints the table of docs/results.md in Markdown. Results that other flags made are refused, so that other
numbers of steps want another --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runs import ROOT, spread, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "pretraining_helps")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--labelled", type=int, default=60, help="phrases with a transcript (of 305)")
    parser.add_argument("--steps", type=int, default=600, help="of CTC")
    parser.add_argument("--pretraining", type=int, default=2800, help="steps of wav2vec 2.0")
    a = parser.parse_args()
    seeds = [int(seed) for seed in a.seeds.split(",")]
    few = (f"--config.tasks.ctc.labelled={a.labelled}", f"--config.steps={a.steps}")
    few += (f"--config.optimizer.warmup={max(1, a.steps // 10)}", "--config.eval_every=0")
    long = (f"--config.steps={a.pretraining}", f"--config.optimizer.warmup={max(1, a.pretraining // 10)}")
    scratch, tuned, pretext = [], [], []
    for seed in seeds:
        before = a.out / f"wav2vec2_{seed}"
        pretext.append(train("configs/wav2vec2.py", before, seed, *long)["wav2vec2"])
        start = f"--config.init_from={before}"
        tuned.append(train("configs/ctc.py", a.out / f"tuned_{seed}", seed, *few, start)["ctc"])
        scratch.append(train("configs/ctc.py", a.out / f"scratch_{seed}", seed, *few)["ctc"])
    perplexity = [r["details"]["code_perplexity"] for r in pretext]
    print(f"wav2vec 2.0: accuracy {spread([r['value'] for r in pretext])}, code perplexity {spread(perplexity)}")
    print("| CTC, mean (seeds) | character error rate ↓ | word error rate ↓ |\n|---|---|---|")
    for name, runs in (("from scratch", scratch), ("from the pre-trained encoder", tuned)):
        words = [r["details"]["word_error_rate"] for r in runs]
        print(f"| {name} | {spread([r['value'] for r in runs])} | {spread(words)} |")
    print(f"| {scratch[0]['baseline_is']} | {scratch[0]['baseline']:.3f} | |")


if __name__ == "__main__":
    main()
