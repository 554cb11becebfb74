"""Every step of a run against forgetting once more in torch, from where ours stands: is a step of ours the twin's?

    python benchmarks/forgetting_forced.py --config=split:permuted --strategies=l2:0.1,mas:1 --seed=1 steps=250

Two runs of equal programs drift apart, as rounding differs and training magnifies it. So the twin of `forgetting_twin.py` takes
each step from our weights, moments, importance and θ* here. For each strategy it prints the largest relative difference of a step's
change of the weights, of the penalty, and of the importance after each task. Biases of keys are left out: their gradient is 0
but for rounding, which Adam brings to full length. Needs torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.forgetting import built, fields_of  # noqa: E402
from benchmarks.forgetting_twin import STRATEGIES, Net, Stream, Weights, gradients, read, stream_of  # noqa: E402
from unimodal.training.checkpoint import named  # noqa: E402
from unimodal.training.loop import to_device  # noqa: E402


def forced(word: str, config: str, seed: int, fields: list[str], stream: Stream) -> dict[str, float]:
    """The largest relative difference of each kind."""
    experiment = built(config, [*fields, f"seed={seed}", *fields_of(word)])
    plan, program, optimizer = experiment.plan(), experiment.program, experiment.optimizer
    tasks, weights = {task.name: task for task in plan.tasks}, plan.schedule.weights()
    body, patch = experiment.backbones["shared"], experiment.tokenizers["image"][1].patch
    state, compiled = program.init(), {}
    worst: dict[str, float] = {kind: 0.0 for kind in ("step", "penalty", "importance")}

    def theirs(arrays: Mapping[str, Any]) -> Weights:
        """Numbers by our names, one for each weight, by the twin's."""
        net = Net({name: np.array(array, np.float32) for name, array in arrays.items()}, patch, body.depth, body.heads)
        return {name: p.detach() for name, p in net.named_parameters()}

    def moment(which: str) -> Weights:
        found, shapes = named(state.optimizer), named(state.parameters)
        return theirs({n: np.broadcast_to(found[f"inner.{n}.0.{which}"], p.shape) for n, p in shapes.items()})

    def tell(kind: str, ours: Tensor, its: Tensor) -> None:
        if (length := float(its.norm())) != 0:
            worst[kind] = float(np.maximum(worst[kind], float((ours - its).norm()) / length))  # NaN stays

    net = Net(named(state.parameters), patch, body.depth, body.heads)
    name, given = read(word)
    strategy: Any = STRATEGIES[name](net, stream, given)
    with jax.set_mesh(program.mesh):
        for number, (task, step) in enumerate(stream.steps):
            names = plan.schedule.who(number)
            if names not in compiled:
                compiled[names] = program.step({n: (tasks[n].loss, weights[names][n]) for n in names})
            host = {n: {k: x for k, x in next(plan.batches[n]).items() if k != "id"} for n in names}
            before, moments = theirs(named(state.parameters)), [moment(which) for which in ("mu", "nu", "count")]
            state, metrics = compiled[names](state, {n: to_device(rows, program) for n, rows in host.items()})
            after = theirs(named(state.parameters))

            net.load_state_dict(before)
            term = strategy.term(step.now, None)
            said = torch.nn.functional.cross_entropy(net(step.now[0]), step.now[1])
            followed = strategy.bend(gradients(net, said), gradients(net, term))
            tell("penalty", torch.tensor(float(metrics[task]["penalty"])), term.detach())
            length = torch.sqrt(sum((g**2).sum() for g in followed.values()))
            rate = optimizer.learning_rate * min(1.0, number / optimizer.warmup)
            for n, g in followed.items():
                if g.any():
                    g = g * min(1.0, optimizer.clip / float(length))
                    mean, square, count = (each[n] for each in moments)
                    # Kingma & Ba 2015, algorithm 1.
                    mean = (optimizer.b1 * mean + (1 - optimizer.b1) * g) / (1 - optimizer.b1 ** (count + 1))
                    square = (optimizer.b2 * square + (1 - optimizer.b2) * g**2) / (1 - optimizer.b2 ** (count + 1))
                    moved = -rate * mean / (square.sqrt() + optimizer.epsilon)
                    tell("step", without_keys(n, after[n] - before[n]), without_keys(n, moved))
            if number + 1 < len(stream.steps) and (ended := plan.schedule.ended(number + 1)):
                assert plan.schedule.between is not None
                state = plan.schedule.between(ended, state)
                net.load_state_dict(theirs(named(state.parameters)))
                strategy.ended(ended)
                kept = named(state.kept)
                start = next(n for n in kept if ".importance." in n).partition(".importance.")[0] + ".importance."
                ours = theirs({n.removeprefix(start): x for n, x in kept.items() if n.startswith(start)})
                for n, importance in ours.items():
                    tell("importance", without_keys(n, importance), without_keys(n, strategy.omega[n]))
                strategy.omega = ours
    return worst


def without_keys(name: str, x: Tensor) -> Tensor:
    """x without what belongs to biases of keys."""
    if not name.endswith("in_proj_bias"):
        return x
    query, _, value = x.chunk(3)
    return torch.cat([query, value])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="split:permuted")
    parser.add_argument("--strategies", default="ewc:100,l2:0.1,mas:1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("fields", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    stream = stream_of(given.config, given.seed, 200, given.fields)
    for word in given.strategies.split(","):
        found = forced(word, given.config, given.seed, given.fields, stream)
        print(f"{word}: largest relative difference " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    main()
