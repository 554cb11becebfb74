"""Strategies against forgetting on one stream of tasks, beside training them jointly.

    python -m benchmarks.forgetting [--config=stream] [--seeds=1] [--strategies=fine_tuning,l2:10,replay:1+memory=50] [--out=runs/f.jsonl]
        [FIELD=VALUE …]

A strategy is NAME, NAME:STRENGTH or NAME:FIELD=VALUE, joined by +; a field without a dot is one of `continual`. `joint` is
training all tasks in turns. For each run it prints the score of every task at the end, backward transfer, forgetting, and R;
with --out it adds a line to that file, and leaves out what the file has already. FIELD=VALUE changes the recipe. At the end
comes the table of the file: means over seeds, and how much of what the joint run gains over the untrained model is kept.
--steps=N times N steps of the last task instead, where every strategy does all that it does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import launch
from unimodal.command.recipe import as_plain, change, load_recipe
from unimodal.experiment import build
from unimodal.training.loop import compile_steps, to_device

ROOT = Path(__file__).resolve().parents[1]
JOINT = "joint"
STRATEGIES = "joint,fine_tuning,l2:1,ewc:100,si:1,mas:1,lwf:1,replay:1,der:1,agem,ogd"


def fields_of(word: str) -> list[str]:
    """The fields of the recipe that a strategy's word stands for."""
    name, _, rest = word.partition(":")
    if name == JOINT:
        return ["schedule=alternate"]
    more = [part if "=" in part else f"strength={part}" for part in rest.split("+") if part]
    return [f"continual.strategy={name}", *(f if "." in f.partition("=")[0] else f"continual.{f}" for f in more)]


def run(workdir: Path, config: str, fields: Sequence[str]) -> dict[str, Any]:
    """Train in a fork, so that imports are paid for once, and give what a line of the file says."""
    words = [f"--config={config}", f"--workdir={workdir}", *(f"--config.{field}" for field in fields)]
    began, said = time.monotonic(), workdir.with_suffix(".txt")
    child = os.fork()
    if child == 0:
        for number in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os._exit(launch.main(["launch.py", "train", *words]))
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(said.read_text()[-3000:])
    found = json.loads((workdir / "results.json").read_text())
    return {
        "values": {name: row["value"] for name, row in found["tasks"].items()},
        "untrained": {name: row["details"]["untrained"] for name, row in found["tasks"].items()},
        "continual": found.get("continual"),
        "seconds": round(time.monotonic() - began, 1),
    }


def shares(line: Mapping[str, Any], joint: Mapping[str, Any]) -> dict[str, float]:
    """How much of what joint training gains over the untrained model each task has at the end, where it gains anything."""
    before, best = line["untrained"], joint["values"]
    return {
        n: (value - before[n]) / (best[n] - before[n]) for n, value in line["values"].items() if best[n] != before[n]
    }


def tell(line: Mapping[str, Any]) -> None:
    values = ", ".join(f"{name} {value:.4g}" for name, value in line["values"].items())
    print(f"{line['strategy']}, seed {line['seed']}: {values}; {line['seconds']:.0f} s", flush=True)
    if (more := line["continual"]) is not None:
        print(f"    backward {more['backward_transfer']:.3g}, forgetting {more['forgetting']:.3g}")
        for name, row in zip(more["tasks"], more["matrix"], strict=True):
            print(f"    after {name}: " + "  ".join(f"{value:.4g}" for value in row), flush=True)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds as Markdown; where there are several, the least and the largest average too."""
    joint = {line["seed"]: line for line in lines if line["strategy"] == JOINT}
    columns = ("strategy", "average", "of joint's gain", "forgetting", "bytes of examples", "s", "seeds")
    rows = [columns, ("---",) * len(columns)]
    for word in dict.fromkeys(line["strategy"] for line in lines):
        mine = [line for line in lines if line["strategy"] == word]
        averages = [float(np.mean(list(line["values"].values()))) for line in mine]
        kept = [float(np.mean(list(shares(x, joint[x["seed"]]).values()))) for x in mine if x["seed"] in joint]
        found = [line["continual"] for line in mine if line["continual"] is not None]
        held = max((sum(f["memory_bytes"].values()) for f in found), default=0)
        rows.append(
            (
                word,
                f"{np.mean(averages):.3f}" + (f" ({min(averages):.3f}–{max(averages):.3f})" if len(mine) > 1 else ""),
                f"{np.mean(kept):.0%}" if kept else "",
                f"{np.mean([f['forgetting'] for f in found]):.3f}" if found else "",
                f"{held:,}" if held else "",
                f"{np.mean([line['seconds'] for line in mine]):.0f}",
                str(len(mine)),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def milliseconds(config: str, fields: Sequence[str], steps: int) -> float:
    """The median time of a step of the last task, without what is between steps."""
    name, _, argument = config.partition(":")
    recipe = load_recipe(ROOT / "configs" / f"{name}.py", argument or None)
    for field in fields:
        change(recipe, *field.split("=", 1))
    experiment = build(as_plain(recipe), launch.task_class)
    plan, last = experiment.plan(), experiment.loop.steps - 1
    names = plan.schedule.who(last)
    compiled = compile_steps(
        experiment.program, {task.name: task for task in plan.tasks}, experiment.loop, plan.schedule
    )[names]
    counts = dict(zip(plan.schedule.names, plan.schedule.steps, strict=True))
    for task in names[1:]:  # to what is remembered of it
        iterator = plan.batches[task]
        iterator.set_state({**iterator.get_state(), "count": counts[task]})
    host = {task: {n: x for n, x in next(plan.batches[task]).items() if n != "id"} for task in names}
    batch = {task: to_device(arrays, experiment.program) for task, arrays in host.items()}
    state, times = experiment.program.init(), []
    with jax.set_mesh(experiment.program.mesh):
        for _ in range(steps + 2):  # the first compile
            began = time.perf_counter()
            state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))
            times.append(1000 * (time.perf_counter() - began))
    return float(np.median(times[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="stream")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--strategies", default=STRATEGIES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("fields", nargs="*")
    given = parser.parse_args()
    if given.steps:
        for word in given.strategies.split(","):
            if word != JOINT:
                found = milliseconds(given.config, [*given.fields, *fields_of(word)], given.steps)
                print(f"{word}: {found:.1f} ms a step", flush=True)
        return
    lines: list[dict[str, Any]] = []
    if given.out is not None and given.out.exists():
        lines = [json.loads(line) for line in given.out.read_text().splitlines()]
    have = {(line["strategy"], line["seed"]) for line in lines}
    for seed in range(given.seeds):
        for word in given.strategies.split(","):
            if (word, seed) in have:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = run(Path(folder) / "run", given.config, [*given.fields, f"seed={seed}", *fields_of(word)])
            lines.append({"strategy": word, "seed": seed, **found})
            tell(lines[-1])
            if given.out is not None:
                with given.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
