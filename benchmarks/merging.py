"""Two branches of one trunk, each gone on with on a task of its own, and merged: by their mean, by task arithmetic, by TIES.

    python tools/make_mnist.py data/mnist --train=10000 --validation=2000
    python -m benchmarks.merging [--seeds=3] [--out=runs/merging.jsonl]

The tasks are the digits 0 to 4 and 5 to 9 of MNIST, each with a head of its own. The base has trained 40 steps on both; each
branch goes on for 200 on one of them, and `joint` for 400 on both. Scales are chosen on half of validation's records and
all rows are of the other half, so that the search has not seen them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import launch
from unimodal.history.measure import Measuring
from unimodal.ledger import Ledger
from unimodal.ledger.changes import Merging, merged

RECIPE = """
from configs import common, split
from tasks.vit import Vit


def get_config():
    config = common.base()
    split.on_one_patch(config)
    config.update(schedule="alternate", eval_every=0, steps=40)
    for name, digits in (("low", "01234"), ("high", "56789")):
        source = f"{split.MNIST}?only=label:{','.join(digits)}"
        config.tasks[name] = common.every(Vit, name=name, source=source, labels=dict(classes=tuple(digits)), batch_size=64)
        config.tasks[name].kind = "vit"
    return config
"""
SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TASKS = ("low", "high")


def forked(work: Any) -> None:
    """Run work() in a fork, so that imports are paid for once and nothing is shared."""
    child = os.fork()
    if child == 0:
        os._exit(work() or 0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit("a run failed")


def train(folder: Path, name: str, seed: int, *fields: str) -> None:
    given = [f"seed={seed}", f"ledger={folder / 'ledger'}", *fields]
    words = [f"--config={folder / 'recipe.py'}", f"--workdir={folder / name}", *(f"--config.{f}" for f in given)]
    forked(lambda: launch.main(["launch.py", "train", *words]))


def measured(folder: Path, out: Path) -> None:
    """The accuracy of each commit and merge on both halves of validation, as one line of JSON."""
    ledger = Ledger(folder / "ledger")
    base, joint, low, high = (ledger.commit(ref) for ref in ("base", "joint", *TASKS))
    measuring, found = Measuring(ledger), {}

    def halves(draft: Any, what: str) -> dict[str, list[float]]:
        answers = measuring.of_draft(draft, what)
        columns = {task: np.asarray(answers[task].columns["correct"]) for task in TASKS}
        return {task: [float(rows[0::2].mean()), float(rows[1::2].mean())] for task, rows in columns.items()}

    for name, commit in (("base", base), ("only low", low), ("only high", high), ("joint", joint)):
        found[name] = halves(commit.draft, name)
    ways = [("mean", Merging("mean"))]
    ways += [(f"task arithmetic {scale}", Merging("task_arithmetic", scale)) for scale in SCALES]
    ways += [(f"ties {scale}", Merging("ties", scale)) for scale in SCALES]
    for name, how in ways:
        with ledger.writing():
            found[name] = halves(merged([low, high], base, how)[0], name)
    out.write_text(json.dumps(found))


def chosen(found: dict[str, dict[str, list[float]]], method: str) -> str:
    """The scale of a method whose mean over tasks is best on the half that is searched."""
    return max((name for name in found if name.startswith(method)), key=lambda n: sum(found[n][t][0] for t in TASKS))


def table(lines: Sequence[dict[str, Any]]) -> str:
    rows = []
    for method in ("base", "only low", "only high", "mean", "task arithmetic", "ties", "joint"):
        names = [chosen(line["found"], method) for line in lines]
        values = {t: [line["found"][n][t][1] for line, n in zip(lines, names, strict=True)] for t in TASKS}
        cells = [f"{np.mean(v):.3f} ({', '.join(f'{x:.3f}' for x in v)})" for v in values.values()]
        scales = sorted({name.removeprefix(method).strip() for name in names} - {""})
        rows.append(f"| {method}{' at ' + ', '.join(scales) if scales else ''} | {' | '.join(cells)} |")
    return "\n".join(["| | digits 0–4 | digits 5–9 |", "| --- | --- | --- |", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "recipe.py").write_text(RECIPE)
            train(folder, "start", seed, "ledger_branch=base")
            start = f"init_from=ledger:{folder / 'ledger'}@base"
            for task, other in (TASKS, TASKS[::-1]):
                train(folder, task, seed, start, f"ledger_branch={task}", "steps=200", f"tasks.{other}.weight=1e-6")
            train(folder, "joint", seed, start, "ledger_branch=joint", "steps=400")
            forked(lambda folder=folder: measured(folder, folder / "found.json"))
            lines.append({"seed": seed, "found": json.loads((folder / "found.json").read_text())})
    if given.out is not None:
        given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))


if __name__ == "__main__":
    main()
