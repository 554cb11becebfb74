"""Do our task and a twin in torch learn the same? Both train on the same batches, from the same weights, side by side.

    python benchmarks/same_curves.py --task=simclr                  # 200 steps of the small recipe, depth 4, width 128
    python benchmarks/same_curves.py --task=vit --steps=400 --config.backbones.shared.depth=12

The twin (`torch_twins_vision`) is transformers' model with the method's loss as its paper has it, and takes our initial
weights, parameter by parameter, and the arrays of our own pipeline: views, crops, the noise that chooses MAE's patches. Its
AdamW has our schedule, clipping and decay (of matrices and tables). Compute is in float32, and what only the device draws
(dropout, mixing) is off. Prints both losses at some steps, how far they are apart, and how far ours with other seeds are:
a difference in method would show at once, one of rounding grows slowly and stays below what another seed changes.

Needs torch, transformers, and for the default source data/cifar10 (`python tools/make_cifar10.py data/cifar10`).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch
import torch_twins_vision
from paper_models import DROPOUT, plain, put
from torch import nn
from train_step import literal

import launch
from unimodal.errors import UsageError
from unimodal.experiment import Experiment, build
from unimodal.training.loop import to_device
from unimodal.training.parameters import described

TASKS = ("vit", "mae", "simclr", "moco", "swav", "imagegpt")
# Off, as the device draws them; and what makes a small recipe small enough for some hundred steps on one core.
OFF = dict.fromkeys((*DROPOUT, "mixup", "cutmix", "patch_dropout"), 0.0)
SHOWN = (0, 1, 2, 5, 10, 20, 50)


def experiment(options: argparse.Namespace, seed: int) -> Experiment:
    """The small recipe in its smaller shape."""
    config = plain(options.task, "small")
    config.update(seed=seed, steps=options.steps, evaluations={})
    for group in ("tokenizers", "backbones", "tasks"):
        for name, value in OFF.items():
            put(config, f"{group}.*.{name}", value)
    heads = max(1, options.width // 64)
    for name, value in dict(width=options.width, depth=options.depth, heads=heads, dtype="float32").items():
        put(config, f"backbones.*.{name}", value)
    put(config, "tasks.*.batch_size", options.batch)
    put(config, "optimizer.warmup", max(1, options.steps // 10))
    if options.source:
        put(config, "tasks.*.source", options.source)
    for path, value in options.overrides:
        if not put(config, path, value):
            raise UsageError(f"--config.{path}: there is no such field in the recipe")
    return build(config, launch.task_class)


def batches(made: Experiment) -> Iterator[dict[str, np.ndarray]]:
    """The arrays that the loop would train on."""
    for batch in made.train_batches(made.tasks[0]):
        yield {name: array for name, array in batch.items() if name != "id"}


class Ours:
    """The step that `launch.py train` compiles."""

    def __init__(self, made: Experiment, step: Any = None):
        """step: one compiled already, for another seed."""
        (task,), self.program = made.tasks, made.program
        self.name = task.name
        with jax.set_mesh(self.program.mesh):
            self.state = self.program.init()
            self.step = step or self.program.step({task.name: (task.loss, task.weight)})

    def __call__(self, batch: dict[str, np.ndarray]) -> float:
        with jax.set_mesh(self.program.mesh):
            arrays = {self.name: to_device(batch, self.program)}
            self.state, metrics = self.step(self.state, arrays)
        return float(metrics[self.name]["loss"])


class Twin:
    """The same in torch. double: in float64."""

    def __init__(self, made: Experiment, ours: Ours, batch: dict[str, np.ndarray], *, double: bool = False):
        (task,), c = made.tasks, made.optimizer
        self.batch, self.config, self.count, self.double = {}, c, 0, double
        self._take(batch)
        self.module, self.loss = torch_twins_vision.TWINS[type(task).__name__](made, task, self.batch)
        self.module.train()
        values = dict(each_layer(ours.state.parameters))
        decayed: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        seen: set[str] = set()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                kind, names = torch_twins_vision.wiring(made, task, name)
                found = [as_there(kind, values[n][0], parameter) for n in names]
                parameter.copy_(torch.from_numpy(np.concatenate(found, axis=-1).reshape(parameter.shape)))
                seen.update(names)
                if parameter.requires_grad:
                    decayed[values[names[0]][1]].append(parameter)
        if left := set(values) - seen:
            raise UsageError(f"the twin has no {', '.join(sorted(left))}")
        slow, queue = (getattr(self.module, name, None) for name in ("slow", "queue"))
        if double:
            self.module.double()
        if queue is not None:
            queue.clear()
            queue.rows = queue.rows.double() if double else queue.rows
        if slow is not None:
            slow.copy.to(torch.float64 if double else torch.float32)
            slow.begin()
        groups = [dict(params=ps, weight_decay=c.weight_decay * decays) for decays, ps in decayed.items() if ps]
        self.optimizer = torch.optim.AdamW(groups, betas=(c.b1, c.b2), eps=c.epsilon)
        self.trained = [p for ps in decayed.values() for p in ps]
        self.schedule = c.schedule(made.loop.steps)

    def _take(self, batch: dict[str, np.ndarray]) -> None:
        for name, array in batch.items():
            value = torch.from_numpy(np.array(array))
            value = value.double() if self.double and value.is_floating_point() else value
            self.batch[name] = value.long() if value.dtype == torch.int32 else value

    def __call__(self, batch: dict[str, np.ndarray]) -> float:
        self._take(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.schedule(self.count))
        self.count += 1
        loss = self.loss()
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.trained, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def each_layer(parameters: Any) -> Iterator[tuple[str, tuple[np.ndarray, bool]]]:
    """Parameters by name, stacked ones layer by layer as "layers.0.…", and whether weight decay applies."""
    for p in described(parameters):
        value = np.asarray(p.value)
        if not p.stacked:
            yield p.name, (value, p.decays)
            continue
        for i, one in enumerate(value):
            yield p.name.replace(".layers.", f".layers.{i}."), (one, p.decays)


def as_there(kind: str, ours: np.ndarray, there: torch.Tensor) -> np.ndarray:
    """A parameter of ours as a twin keeps it."""
    if kind == "same":
        return ours.reshape(-1)
    if kind == "patches":  # rows, columns, channels → a convolution's outputs, channels, rows, columns
        _, channels, rows, columns = there.shape
        return np.ascontiguousarray(ours.reshape(rows, columns, channels, -1).transpose(3, 2, 0, 1)).reshape(-1)
    inputs = there.shape[0] if kind == "conv1d" else there.shape[1]
    matrix = ours.reshape(inputs, -1)
    return matrix if kind == "conv1d" else np.ascontiguousarray(matrix.T)


def apart(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """How far two losses are from each other, as a share; of 0.01 where a loss is smaller, as MoCo's with an empty queue."""
    return np.abs(here - there) / np.maximum(np.abs(there), 1e-2)


def smooth(losses: np.ndarray, window: int) -> np.ndarray:
    """Means of the last `window` steps, as single batches differ."""
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    first = np.maximum(np.arange(len(losses)) + 1 - window, 0)
    return (sums[1:] - sums[first]) / (np.arange(len(losses)) + 1 - first)


def finite(whose: str, losses: np.ndarray) -> None:
    """Nothing is far from a loss that is no number: end with a line instead."""
    if not (good := np.isfinite(losses)).all():
        sys.exit(f"error: the loss of {whose} is {losses[~good][0]} at step {int(good.argmin())}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--source", help="of the pictures, if not the recipe's")
    parser.add_argument(
        "--seeds", default="0,1,2", help="the first is the twin's too, the others show how far seeds are apart"
    )
    parser.add_argument(
        "--double", action="store_true", help="train the twin in float64, too: how far does rounding lead?"
    )
    options, rest = parser.parse_known_args()
    options.overrides = []
    for given in rest:
        found = re.fullmatch(r"--config\.([\w.*]+)=(.*)", given)
        if found is None:
            parser.error(f"{given!r} is no flag; a field is --config.PATH=VALUE")
        options.overrides.append((found[1], literal(found[2])))
    return options


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    first, *others = (int(seed) for seed in options.seeds.split(","))
    made = experiment(options, first)
    ours, data, start = Ours(made), batches(made), time.perf_counter()
    batch = next(data)
    twin = Twin(made, ours, batch)
    exact = Twin(made, ours, batch, double=True) if options.double else None
    pairs, doubles = [], []
    for step in range(options.steps):
        doubles += [exact(batch)] if exact is not None else []
        pairs.append((twin(batch), ours(batch)))
        batch = next(data) if step + 1 < options.steps else batch
    there, here = np.array(pairs).T
    finite("ours", here)
    finite("torch", there)
    print(f"furthest apart: {apart(here, there).max():.1e} at step {apart(here, there).argmax()}", flush=True)
    if doubles:
        for name, losses in (("ours", here), ("torch", there)):
            far = apart(losses, np.array(doubles))
            shown = ", ".join(f"{far[: s + 1].max():.1e} up to step {s}" for s in (*SHOWN, 99, 199) if s < len(far))
            print(f"{name} in float32 from torch in float64: {shown}", flush=True)
    curves = []
    for seed in others:
        other = experiment(options, seed)
        step = Ours(other, ours.step)
        curves.append([step(b) for b, _ in zip(batches(other), range(options.steps), strict=False)])
        finite(f"seed {seed}", np.array(curves[-1]))
    report(options, here, there, np.array(curves), time.perf_counter() - start)


def report(options: argparse.Namespace, here: np.ndarray, there: np.ndarray, curves: np.ndarray, took: float) -> None:
    steps = [*(s for s in SHOWN if s < options.steps), *range(99, options.steps, 100)]
    seeds = "".join(f" seed {seed} |" for seed in options.seeds.split(",")[1:])
    print(f"| {options.task}, step | ours | torch | apart |{seeds}\n|---|---|---|---|{'---|' * len(curves)}")
    for s in dict.fromkeys([*steps, options.steps - 1]):
        far = apart(here[s], there[s])
        print(f"| {s} | {here[s]:.5f} | {there[s]:.5f} | {far:.1e} |{''.join(f' {c[s]:.5f} |' for c in curves)}")
    print(f"in {took:.0f} s")
    if len(curves) and options.steps > 10:
        mine, other = smooth(here, 10), smooth(there, 10)
        spread = np.abs(np.stack([smooth(c, 10) for c in curves]) - mine).max(axis=0)
        beyond = int((np.abs(mine - other) > spread).sum())
        print(
            f"means of ten steps: twins differ by {np.abs(mine - other).max():.2g} at most, seeds by {spread[9:].min():.2g} to "
            f"{spread.max():.2g}; at {beyond} of {len(mine)} steps the twins are further apart than the seeds"
        )


if __name__ == "__main__":
    main()
