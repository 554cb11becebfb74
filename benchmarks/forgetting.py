"""Strategies against forgetting on one stream of tasks, beside training them jointly.

    python -m benchmarks.forgetting [--config=stream] [--seeds=1] [--strategies=fine_tuning,l2:10,replay:1+memory=50] [--out=runs/f.jsonl]
        [FIELD=VALUE …]

A strategy is NAME, NAME:STRENGTH or NAME:FIELD=VALUE, joined by +; a field without a dot is one of `continual`. `joint` is
training all tasks in turns. For each run it prints the score of every task at the end, backward transfer, forgetting, and R;
with --out it adds a line to that file, and leaves out what the file has already of the same config and fields. FIELD=VALUE changes the recipe. At the end
comes the table of the file: means over seeds, and how much of what the joint run gains over the untrained model is kept.
Seeds count from --first=0. --steps=N times N steps of the last task instead, where every strategy does all that it does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import launch
from unimodal.command.recipe import as_plain, change, load_recipe
from unimodal.continual.matrix import matrix_of
from unimodal.evaluation.run import MeshReader
from unimodal.experiment import Experiment, build
from unimodal.training.loop import compile_steps, to_device
from unimodal.training.turns import turns

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


def built(config: str, fields: Sequence[str]) -> Experiment:
    """The experiment of a recipe with fields changed."""
    name, _, argument = config.partition(":")
    recipe = load_recipe(ROOT / "configs" / f"{name}.py", argument or None)
    for field in fields:
        change(recipe, *field.split("=", 1))
    return build(as_plain(recipe), launch.task_class)


class Once(MeshReader):
    """Reads the data of each evaluation once, and keeps it."""

    def __init__(self, mesh: Any):
        super().__init__(mesh)
        self._held: dict[Any, Held] = {}

    def rows(self, predict: Any, model: Any, examples: Any, batch_size: int, limit: int | None = None) -> Any:
        if predict not in self._held:
            # By place: grain's iterator reads 500 ahead, and counts those that are ready at every one.
            ordered = examples.ordered()
            self._held[predict] = Held([dict(ordered[i]) for i in range(len(ordered))])
        held: Any = self._held[predict]
        return super().rows(predict, model, held, batch_size, limit)


@dataclass(frozen=True)
class Held:
    """Examples that were read."""

    examples: list[dict[str, Any]]

    def ordered(self) -> list[dict[str, Any]]:
        return self.examples


class Shared:
    """What runs that differ in their seed alone have in common: compiled steps, evaluations and their data. What a loss draws
    by chance is of the seed that was first."""

    def __init__(self, first: Experiment):
        self.first, self.evaluations, self.reader = first, first.evaluations, Once(first.mesh)
        self.compiled: dict[tuple[str, ...], Any] = {}


def learn(experiment: Experiment, shared: Shared) -> dict[str, Any]:
    """Train as `launch.py train` does, without a workdir, and give what a line of the file says."""
    began, compiled, evaluations = time.monotonic(), shared.compiled, shared.evaluations
    program = experiment.program
    if experiment.sequence is None:
        schedule, tasks = None, experiment.tasks
        batches: Mapping[str, Any] = {task.name: experiment.train_batches(task) for task in tasks}
        who = turns(tasks, experiment.loop.schedule, experiment.loop.turn_temperature)
    else:
        plan = experiment.plan()
        schedule, tasks, batches, who = plan.schedule, plan.tasks, plan.batches, plan.schedule.who
    by_name, bad = {task.name: task for task in tasks}, []

    def labels(names: Sequence[str]) -> dict[str, str]:
        # One that trains alone is called alike whichever it is: equal programs are then compiled once, and kept once.
        alike = len(names) == 1 and names[0] not in getattr(experiment.model, "state", {})
        return {name: "now" if alike else name for name in names}

    def scores(model: Any) -> dict[str, float]:
        return {name: float(one.measure(model, shared.reader).score["value"]) for name, one in evaluations.items()}

    untrained, scored = scores(program.first_model()), {name: [] for name in evaluations}
    state = program.init()
    with jax.set_mesh(program.mesh):
        for step in range(experiment.loop.steps):
            names = who(step)
            called = labels(names)
            if names not in compiled:
                weights = {names[0]: 1.0} if schedule is None else schedule.weights()[names]
                compiled[names] = program.step({called[n]: (by_name[n].loss, w) for n, w in weights.items()})
            host = {name: {n: x for n, x in next(batches[name]).items() if n != "id"} for name in names}
            state, metrics = compiled[names](state, {called[n]: to_device(rows, program) for n, rows in host.items()})
            bad += [one["bad"] for one in metrics.values()]
            if schedule is not None and step + 1 < experiment.loop.steps and (ended := schedule.ended(step + 1)):
                state = state if schedule.between is None else schedule.between(ended, state)
                for name, value in scores(program.model(state)).items():
                    scored[name].append((step + 1, value))
    values = scores(program.model(state))
    assert not np.any(jax.device_get(bad)), "a step was not finite"
    found = {
        name: dict(
            value=values[name],
            details=dict(untrained=untrained[name]),
            higher_is_better=one.higher_is_better,
            metric=one.metric,
        )
        for name, one in evaluations.items()
    }
    more = None if schedule is None else matrix_of(schedule, scored, found)
    return {
        "values": values,
        "untrained": untrained,
        "continual": None if more is None else {**more, "memory_bytes": experiment.memory_bytes},
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
    experiment = built(config, fields)
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


def made_by(config: str, fields: Sequence[str]) -> dict[str, Any]:
    """What a line of a file says of how it came to be, beside strategy and seed. Data under the recipe's name are not looked at."""
    return {"config": config, "fields": sorted(fields)}


def lines_of(path: Path | None, of: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of a file that were made so; others stay in it, and are not looked at."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.exists() else []
    return [line for line in found if all(line.get(name) == value for name, value in of.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="stream")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
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
    of = made_by(given.config, given.fields)
    lines = lines_of(given.out, of)
    have = {(line["strategy"], line["seed"]) for line in lines}
    for word in given.strategies.split(","):
        shared: Shared | None = None
        for seed in range(given.first, given.first + given.seeds):
            if (word, seed) in have:
                continue
            if shared is None:
                shared = Shared(built(given.config, [*given.fields, f"seed={seed}", *fields_of(word)]))
            found = learn(replace(shared.first, seed=seed), shared)
            lines.append({**of, "strategy": word, "seed": seed, **found})
            tell(lines[-1])
            if given.out is not None:
                with given.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
