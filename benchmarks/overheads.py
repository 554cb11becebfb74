"""Host pipeline against what a step eats, import time, and compile time by depth.

python benchmarks/overheads.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import demo  # noqa: E402
from launch import as_plain, task_class  # noqa: E402
from unimodal.experiment import build  # noqa: E402
from unimodal.training.loop import to_device  # noqa: E402


def imports(rounds: int = 5) -> None:
    program = "import time; t = time.perf_counter(); import unimodal; print(time.perf_counter() - t)"
    found = sorted(float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(rounds))
    print(f"import unimodal: {found[len(found) // 2]:.2f} s (of {rounds}: {found[0]:.2f} to {found[-1]:.2f})")


def pipeline(seconds: float = 3.0) -> None:
    experiment = build(as_plain(demo.get_config()), task_class)
    program = experiment.program
    for task in experiment.tasks:
        batches = experiment.train_batches(task)
        for _ in range(20):  # decode what is cached, start the threads
            batch = next(batches)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            next(batches)
            count += task.batch_size
        supply = count / (time.perf_counter() - began)
        with jax.set_mesh(program.mesh):
            state, step = program.init(), program.step({task.name: (task.loss, 1.0)})
            placed = {task.name: to_device(batch, program)}
            state, _ = step(state, placed)
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                state, metrics = step(state, placed)
                jax.block_until_ready(metrics)
                count += task.batch_size
        demand = count / (time.perf_counter() - began)
        print(
            f"{task.name}: pipeline {supply:,.0f} examples/s, step eats {demand:,.0f} examples/s ({supply / demand:.0f}×)"
        )


def compiles() -> None:
    for depth in (6, 12, 24):
        config = dict(
            steps=10,
            backbones=dict(shared=dict(width=128, depth=depth, heads=4)),
            tokenizers=dict(text=dict(vocabulary=264, max_length=128)),
            tasks=dict(gpt=dict(batch_size=8)),
        )
        experiment = build(config, task_class, fake_data=True)
        task, program = experiment.tasks[0], experiment.program
        with jax.set_mesh(program.mesh):
            state = program.init()
            batch = {task.name: to_device(next(experiment.train_batches(task)), program)}
            began = time.perf_counter()
            lowered = program.step({task.name: (task.loss, 1.0)}).lower(state, batch)
            traced = time.perf_counter()
            lines = len(lowered.compile().as_text().splitlines())
        print(
            f"depth {depth}: trace {traced - began:.1f} s, compile {time.perf_counter() - traced:.1f} s, {lines} HLO lines"
        )


if __name__ == "__main__":
    imports()
    pipeline()
    compiles()
