"""Where the time of a train step goes, by operation: the thunks of XLA's CPU program, as `jax.profiler` times them.

    taskset -c 0 python benchmarks/op_times.py --models=gpt2,vit_b --width=384 --depth=4 --length=128 --batch=4

It takes the flags of `train_step.py`, without torch. Products are events named `dot` or `ynn_fusion` (XLA's CPU products).
Loops and conditions are left out, since their time is that of the operations in them. The longest twelve are printed by
name, with the shape of their result and where in the model they come from.
"""

from __future__ import annotations

import collections
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
from paper_models import check, make
from timing import seconds
from train_step import Step, arguments

STEPS = 5
OUTER = ("while", "conditional", "cond", "call")


def times(step: Step) -> collections.Counter[str]:
    """Milliseconds of each operation in one step."""
    found: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                step()
        (path,) = Path(folder).glob("**/*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    for plane in planes:
        for line in plane.lines:
            for event in line.events:
                if re.fullmatch(r"[a-z_\-]+[a-z](\.\d+)*", event.name) and not event.name.startswith(OUTER):
                    found[event.name] += event.duration_ns / 1e6 / STEPS
    return found


def described(step: Step) -> dict[str, str]:
    """Every operation's shape and origin, as the compiled program has them."""
    with jax.set_mesh(step.mesh):
        text = step.step.lower(step.state, step.batch).compile().as_text()
    lines = re.findall(r'%([\w.\-]+) = (\S+?)(?:\{\S*)? .*?(?:op_name="([^"]*)")?[^"]*$', text, re.MULTILINE)
    return {name: f"{shape} {origin.split('closed_call/')[-1][-60:]}" for name, shape, origin in lines}


def main(line: list[str]) -> None:
    options, overrides = arguments(line)
    check(options.models, overrides)
    for model in options.models:
        step = Step(make(model, options, overrides), 1)
        step(), step()
        whole = 1e3 * statistics.median(seconds(step, time.process_time) for _ in range(STEPS))
        found = times(step)
        products = sum(took for name, took in found.items() if name.startswith(("dot", "ynn_fusion")))
        rest = sum(found.values()) - products
        print(f"{model}: {whole:.0f} ms of CPU a step; {products:.0f} of them products, {rest:.0f} other operations")
        names = described(step)
        for name, took in found.most_common(12):
            print(f"  {took:7.1f} ms  {name:32} {names.get(name, '')}")


if __name__ == "__main__":
    main(sys.argv[1:])
