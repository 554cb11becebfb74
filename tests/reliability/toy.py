"""A run that compiles in a second: one linear layer, which learns to give nothing. Everything around it is real."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from unimodal.layers import Linear
from unimodal.sharding import make_mesh
from unimodal.training.loop import LoopConfig, train
from unimodal.training.step import Program
from unimodal.training.work import Resumption, Validation, Work

WIDTH = 64  # 16 KiB of parameters, and as much of momentum


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = Linear((WIDTH,), (WIDTH,), ("embed", "mlp"), rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Task:
    """As much of a task as the loop asks for."""

    name: str = "toy"
    weight: float = 1.0
    batch_size: int = 8

    def loss(
        self, model: Any, batch: Any, *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return jnp.mean(model.linear(batch["x"]) ** 2), {}


class Batches:
    """Batch k is random numbers of seed k. `before` is called with k before it is made."""

    def __init__(self, before: Callable[[int], object] = lambda k: None):
        self.k, self.before = 0, before

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.before(self.k)
        self.k += 1
        return {"x": np.random.default_rng(self.k).normal(size=(8, WIDTH)).astype(np.float32)}

    def get_state(self) -> dict[str, Any]:
        return {"k": self.k}

    def set_state(self, state: dict[str, Any]) -> None:
        self.k = state["k"]


def program() -> Program:
    return Program(lambda key: Layer(nnx.Rngs(key)), optax.sgd(0.1, momentum=0.9), make_mesh(data=1), seed=0)


def run(workdir: Path, steps: int = 6, before: Callable[[int], object] = lambda k: None, **more: Any) -> Any:
    """Train, or go on: (state, fingerprint, done)."""
    names = {field.name for field in dataclasses.fields(LoopConfig)}
    loop = {"log_every": 1, "checkpoint_every": 1, **{k: v for k, v in more.items() if k in names}}
    rest = {k: v for k, v in more.items() if k not in names}
    validation = Validation(rest.pop("evaluate", None), rest.pop("higher_is_better", {}))
    rest |= dict(validation=validation, resumption=Resumption(rest.pop("from_step", None)))
    work = Work([Task()], {"toy": Batches(before)}, {"toy": 1})
    return train(program(), work, LoopConfig(steps, **loop), workdir, **rest)


def program_of(workdir: str, options: dict[str, Any]) -> None:
    """The program, exit codes and all, with this run for what `train` does.

    options: of `run`; slow (seconds before each batch); and what happens before batch `at`: room (so many bytes are left on
    the disk, which is a small one), limit (no file may be larger), vanish (the checkpoints are deleted) or readonly (the workdir is remounted so).
    """
    import unimodal.command
    import unimodal.command.runs
    from unimodal.command.runs import mendable
    from unimodal.command.stopping import stoppable
    from unimodal.training.alone import alone

    at, disk = options.pop("at", 3), Path(workdir).parent
    room, limit, vanish, readonly = (options.pop(name, None) for name in ("room", "limit", "vanish", "readonly"))
    slow = options.pop("slow", 0.0)

    def before(k: int) -> None:
        time.sleep(slow)
        if k != at:
            return
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if room is not None:
            there = os.statvfs(disk)
            with contextlib.suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
                file.write(bytes(max(0, there.f_bavail * there.f_frsize - room)))
        if vanish:
            shutil.rmtree(Path(workdir) / "checkpoints", ignore_errors=True)
        if readonly:
            subprocess.run(["mount", "--bind", workdir, workdir], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", workdir], check=True)

    def train_toy(_arguments: Any, _program: str) -> int:
        with mendable(), stoppable("before it was under way"), alone(workdir):
            state, fingerprint, done = run(Path(workdir), before=before, **options)
            print(f"step {int(state.step)} {fingerprint}")
            return 0 if done else 75

    unimodal.command.runs.run = train_toy
    sys.argv = ["launch.py", "train", "--huge_pages=false"]  # or a fork would start its parent's program again
    unimodal.command.program()


if __name__ == "__main__":
    program_of(sys.argv[1], json.loads(sys.argv[2]))
