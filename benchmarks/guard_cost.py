"""What guards and fingerprints cost at GPT-2's size: steps with and without them, in turns.

    python -m benchmarks.guard_cost [--rounds=15] [--batch=4] [--length=128]

The guard is what a step does so that numbers that are not finite change nothing: judging losses and gradients, and a branch that
leaves the state as it was. (The norm of the gradient is computed in both, for it is logged.) The fingerprint is the hash of the
whole state, once for each checkpoint and each comparison of replicas. What the host does for guard and status in a step is
timed by itself. Small batches make the guard's share large, as its cost does not depend on the batch. What is compared is
processor time, in turns, and what the compiler counts of arithmetic and bytes: neither counts what other programs take meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import unimodal.training.step as step_module
from benchmarks.timing import seconds
from unimodal.experiment import build
from unimodal.places import places_of
from unimodal.training.checkpoint import named
from unimodal.training.fingerprint import leaf_hashes
from unimodal.training.guard import BEHIND, Guard
from unimodal.training.loop import to_device
from unimodal.training.status import TRAINING, WAITING, Status

HOST_STEPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4, help="texts in a step")
    parser.add_argument("--length", type=int, default=128, help="ids in a text")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    given = parser.parse_args()
    config: dict[str, Any] = dict(
        steps=1000,
        backbones=dict(shared=dict(width=given.width, depth=given.depth, heads=given.width // 64)),
        tokenizers=dict(text=dict(vocabulary=50_257, max_length=1024)),
        tasks=dict(gpt=dict(batch_size=given.batch, texts=dict(length=given.length))),
    )
    experiment = build(config, places_of(None).task_class, fake_data=True)
    program, task = experiment.program, experiment.tasks[0]
    host = {name: value for name, value in next(experiment.train_batches(task)).items() if name != "id"}
    batch = {task.name: to_device(host, program)}
    with jax.set_mesh(program.mesh):
        states: dict[str, Any] = {}

        def run(name: str, step: Any) -> Any:
            def call() -> None:
                state, metrics = step(states.pop(name), batch)
                states[name] = state
                jax.block_until_ready((state, metrics))

            return call

        guarded, bare = (program.step({task.name: (task.loss, 1.0)}) for _ in range(2))
        calls = {"with the guard": run("with the guard", guarded)}
        states["with the guard"] = program.init()
        costs = {"with the guard": guarded.lower(states["with the guard"], batch).compile().cost_analysis()}
        calls["with the guard"]()  # traced before the other
        judge = step_module.judge_numbers
        step_module.judge_numbers = lambda losses, gradients: (
            judge(losses, gradients)[0],
            dict.fromkeys(losses, jnp.int32(0)),
        )
        states["without"] = program.init()
        costs["without"] = bare.lower(states["without"], batch).compile().cost_analysis()
        calls["without"] = run("without", bare)
        calls["without"]()
        step_module.judge_numbers = judge
        times = in_turns(calls, given.rounds)
        count = sum(leaf.size for leaf in jax.tree.leaves(states["without"].parameters))
        print(f"{count / 1e6:.0f}M parameters, {given.batch} texts of {given.length} ids")
        for what in ("flops", "bytes accessed"):
            more = costs["with the guard"][what] / costs["without"][what] - 1
            print(f"{what}: {100 * more:+.2f} % with the guard, as the compiler counts")
        medians = {name: statistics.median(each) for name, each in times.items()}
        for name, median in medians.items():
            print(f"{name:<16} {median:.3f} processor seconds a step (median of {given.rounds})")
        ratios = sorted(a / b for a, b in zip(times["with the guard"], times["without"], strict=True))
        middle = statistics.median(ratios)
        print(
            f"with the guard against without: {middle:.3f} (median of the rounds' ratios, {ratios[0]:.3f} to {ratios[-1]:.3f})"
        )

        arrays = named(states["with the guard"])
        hash_all = {"hash": lambda: jax.block_until_ready(leaf_hashes(arrays))}
        hashing = in_turns(hash_all, 5)["hash"]
        shown, share = float(np.median(hashing)), float(np.median(hashing)) / medians["without"]
        print(f"fingerprint of the state: {shown:.3f} s, {share:.2f} steps; every 1,000 steps {share / 10:.3f} %")
    spent = host_seconds(task.name)
    print(f"guard and status on the host: {1e6 * spent:.0f} µs a step, {100 * spent / medians['without']:.4f} %")


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each call, in every round, after two that do not count; every other round backwards."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name in list(calls) if number % 2 else list(reversed(calls)):
            began = time.process_time()
            calls[name]()
            if number >= 2:
                found[name].append(time.process_time() - began)
    return found


def host_seconds(name: str) -> float:
    """A step's share of what the loop does for them, numbers being on the host already."""
    metrics = {name: {"bad": np.int32(0)}}
    with tempfile.TemporaryDirectory() as folder, Status(folder, HOST_STEPS) as status:
        guard = Guard(10, ["kernel"], print, print)

        def loop() -> None:
            for step in range(1, HOST_STEPS + 1):
                status.now(step, WAITING, [name])
                status.now(step, TRAINING, [name], {})
                guard.watch(step, metrics, {})
                guard.look(step - BEHIND)

        return seconds(loop) / HOST_STEPS


if __name__ == "__main__":
    main()
