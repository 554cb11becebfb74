"""The train step of the papers' models on a CPU, a GPU or TPUs, beside Hugging Face transformers, in turns.

    python benchmarks/train_step.py --models=gpt2,vit_b                      # one GPU or TPU, bfloat16
    python benchmarks/train_step.py --models=gpt2_xl --batch=8 --chunk=256   # other sizes by flags …
    python benchmarks/train_step.py --dp --gpt2.backbones.shared.remat=full  # … or any field of one recipe, or --config.… of all
    python benchmarks/train_step.py --models=bert,ctc --width=256 --depth=4 --length=128 --seconds=2 --batch=4   # a CPU

It is the step that `launch.py train` compiles: the recipe's model in its paper's size, its loss, clipping and AdamW, on
random batches made on the device; dropout is off. Rows of a batch are those of one chip. Compute is in `--dtype`, parameters
and optimizer are in float32. Where torch and transformers are installed and one chip is used, the same architecture runs there
on the same batch: random weights, sdpa attention, fused AdamW, under autocast if `--dtype` is bfloat16, as it
comes and through torch.compile. Times are medians of the rounds; a round is `--steps` steps of each, after as many that do not count.

MFU: model FLOPs (products of forward and backward; attention only where something is seen; no recomputation) over the time
and the chip's published bfloat16 peak.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.util
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from paper_models import MODELS, PAPERS, check, make
from timing import Times, in_turns, seconds

from unimodal.chips import peak_flops
from unimodal.data import ArraySpec
from unimodal.errors import UsageError
from unimodal.experiment import Experiment
from unimodal.plan.compile import abstract_arguments
from unimodal.plan.model_flops import model_flops
from unimodal.remat import REMAT


def synthetic(experiment: Experiment) -> dict[str, dict[str, jax.Array]]:
    """Random batches, each array within its task's range, made where the step wants them."""
    names = [task.name for task in experiment.tasks]
    _, shapes = abstract_arguments(experiment, names)
    specs = {task.name: task.inputs(experiment.model).spec for task in experiment.tasks}

    def draw(key: jax.Array) -> Any:
        keys = iter(jax.random.split(key, len(jax.tree.leaves(shapes))))
        return {
            task: {name: _random(next(keys), specs[task][name], shape.shape) for name, shape in arrays.items()}
            for task, arrays in shapes.items()
        }

    where = jax.tree.map(lambda shape: shape.sharding, shapes)
    return jax.jit(draw, out_shardings=where)(jax.random.key(0))


def _random(key: jax.Array, spec: ArraySpec, shape: tuple[int, ...]) -> jax.Array:
    dtype = jnp.dtype(spec.dtype)
    if dtype == jnp.bool_:
        return jax.random.bernoulli(key, shape=shape)
    if jnp.issubdtype(dtype, jnp.integer):
        return jax.random.randint(key, shape, int(spec.low), int(spec.high), dtype)
    return jax.random.uniform(key, shape, dtype, spec.low, spec.high)


class Step:
    """`count` training steps, as the loop runs them."""

    def __init__(self, experiment: Experiment, count: int):
        (task,), program, self.count = experiment.tasks, experiment.program, count
        self.mesh, self.name = program.mesh, task.name
        self.batch = synthetic(experiment)
        with jax.set_mesh(self.mesh):
            self.state, self.step = program.init(), program.step({task.name: (task.loss, task.weight)})

    def __call__(self) -> None:
        with jax.set_mesh(self.mesh):
            for _ in range(self.count):
                self.state, self.metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, self.metrics))

    @property
    def loss(self) -> float:
        return float(self.metrics[self.name]["loss"])


def twins(experiment: Experiment, ours: Step, options: argparse.Namespace) -> dict[str, Any]:
    """The same in torch, as it comes and compiled: they share weights and optimizer."""
    import torch
    import torch_twins

    on = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if on == "cuda":
        if not torch.cuda.is_available():
            raise UsageError("jax computes on a GPU, but torch finds none: install torch for CUDA, or give --no-torch")
        torch.set_float32_matmul_precision("high")  # TF32, as XLA multiplies float32 there
    arrays = {name: np.asarray(array) for name, array in ours.batch[ours.name].items()}
    module, loss = torch_twins.twin(experiment, arrays, on)
    count, mine = sum(p.numel() for p in module.parameters()), parameters(experiment)
    if abs(count / mine - 1) > 0.01:
        raise UsageError(f"{ours.name} has {mine:,} parameters here but {count:,} in torch: no twin for these fields")
    calls = {"eager": loss} | ({"torch.compile": torch.compile(loss)} if options.compile else {})
    half, count = options.dtype == "bfloat16", options.steps
    return {name: torch_twins.Step(module, call, experiment.optimizer, half, count) for name, call in calls.items()}


def parameters(experiment: Experiment) -> int:
    """How many numbers are trained: what tasks keep beside them, such as queues, is none of them."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(experiment.model, nnx.Param)))


HEAD = ("model", "parameters", "rows a chip", "ms a step", "examples/s a chip", "tokens/s a chip", "MFU")
HEAD += ("eager, examples/s", "times as fast", "torch.compile, examples/s", "times as fast")


def measure(model: str, experiment: Experiment, options: argparse.Namespace) -> str:
    """A row of the table."""
    (task,), chips = experiment.tasks, experiment.mesh.size
    ours = Step(experiment, options.steps)
    steps: dict[str, Any] = {"unimodal": ours}
    if options.torch and chips == 1:
        steps |= twins(experiment, ours, options)
    print(f"{model}: first calls", end="")
    for name, step in list(steps.items()):
        try:
            print(f" {name} {seconds(step):.1f} s", end="", flush=True)
        except RuntimeError as error:  # out of memory, or not to be compiled: the others are measured all the same
            if step is ours:
                raise
            print(f" {name}: {reason(error)}", end="", flush=True)
            del steps[name]
    clock = time.process_time if options.cpu_time else time.perf_counter
    times = in_turns(steps, options.rounds, warm=1, settle=True, clock=clock)
    last = {name: ours.loss if step is ours else float(step.last.detach()) for name, step in steps.items()}
    print("; losses " + ", ".join(f"{name} {loss:.4f}" for name, loss in last.items()), flush=True)
    if not all(map(math.isfinite, last.values())):
        raise UsageError(f"{model}: a loss is not finite")

    mfu, second = "", times["unimodal"].median / options.steps
    rows, peak = task.batch_size / chips, peak_flops(experiment.mesh.devices.flat[0].device_kind)
    if peak is not None and options.dtype == "bfloat16":
        mfu = f"{model_flops(experiment, [task.name]) / second / chips / peak:.1%}"
    rate = rows / second
    figures = [f"{parameters(experiment) / 1e6:.1f}M", f"{rows:.0f}", f"{1e3 * second:,.1f}", f"{rate:,.1f}"]
    figures += [f"{rate * experiment.tokens[task.name]:,.0f}", mfu]
    for name in ("eager", "torch.compile"):
        figures += beside(times.get(name), times["unimodal"], task.batch_size * options.steps)
    return f"| {model} | {' | '.join(figures)} |"


def beside(other: Times | None, ours: Times, examples: int) -> list[str]:
    return ["", ""] if other is None else [f"{examples / other.median:,.1f}", other.over(ours)]


def reason(error: RuntimeError) -> str:
    """XLA's or torch's, in one line that a table can hold."""
    return " ".join(str(error).split()).replace("|", "/")[:300]


def arguments(line: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str, Any]]]:
    """The flags, and what they say of single fields as (model or "config", field, value)."""
    cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=PAPERS, help=f"of {', '.join(MODELS)}")
    parser.add_argument("--dtype", default="float32" if cpu else "bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, help="rows of a batch on each chip")
    parser.add_argument("--width", type=int, help="heads are of 64")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--length", type=int, help="tokens of a text, at most")
    parser.add_argument("--seconds", type=float, help="of sound, at most")
    parser.add_argument("--chunk", type=int, help="positions whose logits exist at a time, 0 for all")
    parser.add_argument("--remat", choices=tuple(REMAT))
    parser.add_argument("--dp", action="store_true", help="all devices, by fsdp; without torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1 if cpu else 10, help="of a round")
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument(
        "--cpu_time", action="store_true", help="seconds of CPU, where others use it too: run on one core by taskset"
    )
    options, rest = parser.parse_known_args(line)
    options.models = options.models.split(",")
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}; there is {', '.join(MODELS)}")
    overrides = []
    for given in rest:
        found = re.fullmatch(r"--(\w+)\.([\w.*]+)=(.*)", given)
        if found is None or found[1] not in ("config", *options.models):
            parser.error(f"{given!r} is no flag; a field is --config.PATH=VALUE, or --MODEL.PATH=VALUE for one model")
        overrides.append((found[1], found[2], literal(found[3])))
    there = all(map(importlib.util.find_spec, ("torch", "transformers")))
    options.torch = options.torch and there and jax.default_backend() in ("cpu", "gpu")
    return options, overrides


def literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a word


def main(line: Sequence[str]) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with torch
    options, overrides = arguments(line)
    check(options.models, overrides)
    versions = [f"jax {jax.__version__}"]
    if options.torch:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        versions += [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    print(f"{', '.join(versions)}; {len(jax.devices())} × {jax.devices()[0].device_kind}; {' '.join(line)}", flush=True)
    rows = []
    for model in options.models:
        try:
            rows.append(measure(model, make(model, options, overrides), options))
        except RuntimeError as error:
            rows.append(f"| {model} | {reason(error)} |{' |' * (len(HEAD) - 2)}")
        print(rows[-1], flush=True)
        jax.clear_caches()
        gc.collect()
        if options.torch and torch.cuda.is_available():
            torch.cuda.empty_cache()
    print(f"\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    print("\n".join(rows))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UsageError as error:
        sys.exit(f"error: {error}")
