"""A long run of tiny steps with checkpoints and evaluations: do memory, threads and open files stay flat?

    python -m benchmarks.soak [--steps=20000] [--every=500]

Trains the GPT task with a very small model on the embedded book, with a checkpoint and an evaluation every so many steps, and
prints resident memory, threads and open files at each evaluation. The exit code is 1 if the second half of the run holds more
than the first: a thread, two files (a checkpoint may be under way), or memory that grows by more than 20 MiB from the
median of its second quarter to that of its last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unimodal.experiment import build
from unimodal.places import places_of
from unimodal.training.loop import train
from unimodal.training.work import Validation, Work

CONFIG: dict[str, Any] = dict(
    log_every=100,
    eval_limit=8,
    backbones=dict(shared=dict(width=16, depth=1, heads=2)),
    tokenizers=dict(text=dict(vocabulary=264, max_length=16)),
    tasks=dict(gpt=dict(batch_size=4, texts=dict(length=16))),
    optimizer=dict(learning_rate=1e-3),
)


def held() -> tuple[float, int, int]:
    """Of this process: resident memory in MiB, threads, open files."""
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(resident.split()[1]) / 1024, threading.active_count(), len(os.listdir("/proc/self/fd"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="steps in all")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints, and between evaluations")
    given = parser.parse_args()
    config = {**CONFIG, "steps": given.steps, "eval_every": given.every, "checkpoint_every": given.every}
    experiment = build(config, places_of(None).task_class)
    rows: list[tuple[float, int, int]] = []

    def evaluate(model: Any, step: int) -> Any:
        scores = experiment.scores(model, step)
        rows.append(held())
        print(f"step {step:>6}: {rows[-1][0]:7.1f} MiB, {rows[-1][1]} threads, {rows[-1][2]} open files", flush=True)
        return scores

    with tempfile.TemporaryDirectory() as workdir:
        batches = {task.name: experiment.train_batches(task) for task in experiment.tasks}
        work = Work(experiment.tasks, batches, experiment.tokens)
        train(experiment.program, work, experiment.loop, workdir, validation=Validation(evaluate))
    if len(rows) < 8:
        print("too short to judge: give more steps, or a smaller --every")
        return 0
    quarter = len(rows) // 4
    early, late = rows[quarter : 2 * quarter], rows[-quarter:]
    grown = statistics.median(row[0] for row in late) - statistics.median(row[0] for row in early)
    threads = max(row[1] for row in late) - max(row[1] for row in early)
    files = max(row[2] for row in late) - max(row[2] for row in early)
    print(f"from the second quarter to the last: {grown:+.1f} MiB, {threads:+d} threads, {files:+d} open files")
    return int(grown > 20 or threads > 0 or files > 2)


if __name__ == "__main__":
    sys.exit(main())
