"""Two branches of one model, each trained on a task of its own, merged: beside training both tasks together.

    python tools/make_mnist.py data/mnist --train=10000 --validation=2000
    python -m benchmarks.merging [--seeds=3] [--base=150] [--steps=100] [--rate=1e-3] [--out=merging.jsonl]

The story of docs/history.md with digits for emoji, of which more are held back. One trunk learns letters and digits for
--base steps. From there a branch learns letters alone and one digits alone, --steps each, and the joint run both in turns, as
many steps in all. Scales are searched on every second validation example by `ledger merge --search` itself
(`unimodal.history.search.best_scale`). What is printed is of the other half, which no choice has seen. data/mnist must have the
size above: the first 10,000 and 2,000 pictures. With --out, what the file has of the same seed, --base, --steps, --rate and
size of the files is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import launch
from configs import common
from tasks.gpt import Gpt
from tasks.vit import Vit
from unimodal.history.measure import Measuring
from unimodal.history.search import best_scale
from unimodal.ledger import Commit, Draft, Ledger
from unimodal.ledger.changes import FROM_BASE, Merging, merged

SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
TASKS = ("gpt", "vit")
DIGITS = Path("data/mnist")


def get_config() -> ConfigDict:
    """Letters and digits in one small trunk."""
    config: Any = common.base()
    config.update(log_every=50)
    config.mesh.data = 1
    config.optimizer.update(learning_rate=3e-3, warmup=20)
    config.backbones.shared = common.backbone(width=48, depth=2, heads=4)
    config.tokenizers.text = dict(vocabulary=264, max_length=32)
    config.tokenizers.image = dict(image_size=(28, 28), patch=7)
    config.tasks.gpt = common.every(Gpt, batch_size=16, texts=dict(length=32))
    config.tasks.vit = common.every(Vit, batch_size=32, source=f"array_record:{DIGITS}", label_smoothing=0.0)
    return config


def run(workdir: Path, fields: Sequence[str]) -> None:
    """Train in a fork, so that imports are paid for once."""
    words = [f"--config={Path(__file__).resolve()}", f"--workdir={workdir}", *(f"--config.{field}" for field in fields)]
    said, child = workdir.with_suffix(".txt"), os.fork()
    if child == 0:
        for number in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os._exit(launch.main(["launch.py", "train", *words]))
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(said.read_text()[-3000:])


def trained(folder: Path, seed: int, base: int, steps: int, rate: float) -> None:
    """Fill a ledger in the folder: `main` is the base, then come a branch for each task, and `joint`."""
    folder.mkdir()
    ledger = folder / "ledger"
    common_to_all = [f"seed={seed}", f"ledger={ledger}"]
    run(folder / "base", [*common_to_all, f"steps={base}"])
    for name in (*TASKS, "joint"):
        Ledger(ledger).branch(name, "main")
        other = [f"tasks.{task}.weight=1e-6" for task in TASKS if name in TASKS and task != name]
        count = steps * (2 if name == "joint" else 1)
        fields = [f"ledger_branch={name}", f"init_from=ledger:{ledger}@main", "schedule=alternate", *other]
        run(folder / name, [*common_to_all, *fields, f"steps={count}", f"optimizer.learning_rate={rate}"])


def told(measuring: Measuring, base: Commit, draft: Draft, what: str) -> dict[str, float]:
    """Values of weights on every second example: those that no scale was chosen by."""
    values = {}
    for name, found in measuring.of_draft(draft, what).items():
        value_of = measuring.value_of(base.draft, name, "the base")
        assert value_of is not None, name
        values[name] = found.half(1).made(value_of)
    return values


def scored(ledger: Ledger) -> dict[str, Any]:
    """Every kind of weights → the scale, if it has one, and values on the half that no choice has seen."""
    commits = {"base": ledger.commit("main"), **{name: ledger.commit(name) for name in (*TASKS, "joint")}}
    base, branches = commits["base"], [commits[task] for task in TASKS]
    measuring = Measuring(ledger)
    found: dict[str, Any] = {n: {"values": told(measuring, base, one.draft, n)} for n, one in commits.items()}
    for method in ("mean", "task_arithmetic", "ties"):
        with ledger.writing():
            how = Merging(method)
            if method in FROM_BASE:
                say = lambda line, method=method: print(f"    {method} {line}", flush=True)  # noqa: E731
                how = Merging(method, best_scale(measuring, branches, base, how, SCALES, say).scale)
            draft, _ = merged(branches, base, how)
            scale = {"scale": how.scale} if method in FROM_BASE else {}
            found[method] = {"values": told(measuring, base, draft, method), **scale}
    return found


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds as Markdown, with the least and the largest, and how much of the joint run's gain each keeps."""
    rows = [("weights", "scale", "gpt ↓", "vit", "of joint's gain: gpt", "vit"), ("---",) * 6]
    for kind in ("base", *TASKS, "mean", "task_arithmetic", "ties", "joint"):
        mine = [line["found"][kind] for line in lines]
        values = {task: np.array([one["values"][task] for one in mine]) for task in TASKS}
        said = [f"{x.mean():.3f} ({x.min():.3f}–{x.max():.3f})" for x in values.values()]
        kept = []
        for task in TASKS:
            start, end = (np.array([line["found"][k]["values"][task] for line in lines]) for k in ("base", "joint"))
            kept.append(f"{np.mean((values[task] - start) / (end - start)):.0%}")
        scales = ", ".join(f"{one['scale']:g}" for one in mine if "scale" in one)
        rows.append((kind, scales, *said, *kept))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base", type=int, default=150)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path)
    given, lines = parser.parse_args(), []
    made_by = dict(base=given.base, steps=given.steps, rate=given.rate)
    made_by |= {f"{name}_bytes": (DIGITS / f"{name}.array_record").stat().st_size for name in ("train", "validation")}
    keys = [{"seed": seed, **made_by} for seed in range(given.seeds)]
    if given.out is not None and given.out.exists():
        lines = [json.loads(line) for line in given.out.read_text().splitlines()]
        lines = [line for line in lines if any(key.items() <= line.items() for key in keys)]
    missing = [key for key in keys if not any(key.items() <= line.items() for line in lines)]
    with tempfile.TemporaryDirectory() as folder:
        for key in missing:  # before anything is scored, as what has begun to compute should not fork
            trained(Path(folder) / str(key["seed"]), key["seed"], given.base, given.steps, given.rate)
        for key in missing:
            lines.append({**key, "found": scored(Ledger(Path(folder) / str(key["seed"]) / "ledger"))})
            for kind, one in lines[-1]["found"].items():
                print(f"seed {key['seed']}, {kind}: {one}", flush=True)
            if given.out is not None:
                with given.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
