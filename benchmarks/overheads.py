"""What there is beside the step: the loop, the start, the input pipeline, imports, and compile time by depth.

python benchmarks/overheads.py
python benchmarks/overheads.py loop starts imports      # some of them
python benchmarks/overheads.py pipeline=vit,clip        # of some tasks
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import demo  # noqa: E402
from launch import as_plain, task_class  # noqa: E402
from unimodal.experiment import build  # noqa: E402
from unimodal.training.loop import to_device, train  # noqa: E402
from unimodal.training.work import Work  # noqa: E402


def imports(rounds: int = 5) -> None:
    for line in ("import unimodal", "from unimodal import Backbone"):
        program = f"import time; t = time.perf_counter(); {line}; print(time.perf_counter() - t)"
        found = sorted(float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(rounds))
        print(f"{line}: {found[len(found) // 2]:.2f} s (of {rounds}: {found[0]:.2f} to {found[-1]:.2f})")


class Repeated:
    """One batch again and again, so that the loop's own time stands apart from the pipeline's."""

    def __init__(self, batch: dict[str, Any]):
        self.batch = batch

    def __iter__(self) -> Repeated:
        return self

    def __next__(self) -> dict[str, Any]:
        return self.batch

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        del state

    def epochs(self) -> dict[str, float]:
        return {}


def loop(steps: int = 600, rounds: int = 3) -> None:
    """A step of some milliseconds by itself, and within the loop that logs, guards and fetches metrics; both on one batch."""
    config = dict(
        steps=steps,
        log_every=10,
        backbones=dict(shared=dict(width=64, depth=2, heads=2)),
        tokenizers=dict(text=dict(vocabulary=264, max_length=64)),
        tasks=dict(gpt=dict(batch_size=8, texts=dict(length=64))),
    )
    for _ in range(rounds):
        experiment = build(config, task_class, fake_data=True)
        (task,), program = experiment.tasks, experiment.program
        batches = {task.name: Repeated(next(experiment.train_batches(task)))}
        with jax.set_mesh(program.mesh):
            state, step = program.init(), program.step({task.name: (task.loss, 1.0)})
            batch = {task.name: to_device(next(batches[task.name]), program)}
            state, _ = jax.block_until_ready(step(state, batch))
            began = time.perf_counter()
            for _ in range(steps):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            alone = (time.perf_counter() - began) / steps
        with tempfile.TemporaryDirectory() as workdir:
            work = Work(experiment.tasks, batches, experiment.tokens)
            train(program, work, experiment.loop, Path(workdir))
            within = 1 / json.loads(Path(workdir, "meters.json").read_text())["steps_per_second"]
        print(
            f"step {1e3 * alone:.2f} ms, in the loop {1e3 * within:.2f} ms: {1e3 * (within - alone):+.2f} ms",
            flush=True,
        )


def starts() -> None:
    """The command's time to the end of five steps, with an empty cache of compiled programs and with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": folder, "PYTHONPATH": str(ROOT)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        for number, name in enumerate(("first", "second")):
            line = ["launch.py", "train", "--config=demo_solo:gpt", f"--workdir={folder}/{number}", "--fake_data"]
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, *line, "--config.steps=5"], cwd=ROOT, env=environment, check=True, capture_output=True
            )
            print(f"{name} start of the demo's GPT, to its fifth step: {time.perf_counter() - began:.1f} s", flush=True)


def pipeline(*names: str, rounds: int = 5, seconds: float = 1.0) -> None:
    """Examples a second of the processor's time, of the pipeline of each of the demo's tasks and of its step, in turns: what
    else the machine does counts for neither."""
    experiment = build(as_plain(demo.get_config()), task_class)
    program = experiment.program
    for task in experiment.tasks:
        if names and task.name not in names:
            continue
        batches = experiment.train_batches(task)
        for _ in range(20):  # decode what is cached, start the threads
            batch = next(batches)
        with jax.set_mesh(program.mesh):
            state, step = program.init(), program.step({task.name: (task.loss, 1.0)})
            placed = {task.name: to_device(batch, program)}
            state, _ = step(state, placed)
            pairs = []
            for _ in range(rounds):
                began, count = time.process_time(), 0
                while time.process_time() - began < seconds:
                    next(batches)
                    count += task.batch_size
                supply = count / (time.process_time() - began)
                time.sleep(0.1)  # until the threads have read ahead all they may
                began, count = time.process_time(), 0
                while time.process_time() - began < seconds:
                    state, metrics = step(state, placed)
                    jax.block_until_ready(metrics)
                    count += task.batch_size
                pairs.append((supply, count / (time.process_time() - began)))
        supply, demand = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(a / b for a, b in pairs)
        print(
            f"| {task.name} | {supply:,.0f} | {demand:,.0f} | {statistics.median(ratios):.1f} "
            f"({ratios[0]:.1f}–{ratios[-1]:.1f}) |",
            flush=True,
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


PARTS = dict(imports=imports, loop=loop, starts=starts, pipeline=pipeline, compiles=compiles)

if __name__ == "__main__":
    for line in sys.argv[1:] or PARTS:
        part, _, chosen = line.partition("=")
        PARTS[part](*filter(None, chosen.split(",")))
