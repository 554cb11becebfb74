"""A task that has a momentum encoder and a queue, and no plumbing."""

from __future__ import annotations

import unittest.mock
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from quick import named

from unimodal.data.blocks import Images, Inputs, columns
from unimodal.errors import UsageError
from unimodal.evaluation.evaluation import Evaluation
from unimodal.experiment import Experiment, build, describe
from unimodal.heads import Projection
from unimodal.model import Model
from unimodal.sharding import parameter_count, parameter_table
from unimodal.state import Momentum, Queue, TaskState
from unimodal.training.checkpoint import Checkpoints
from unimodal.training.loop import train
from unimodal.training.work import Work


@dataclass(frozen=True)
class Moco:
    """Tell a picture's mirror image from those of earlier batches (after He 2020)."""

    name: str = "moco"
    source: str = "embedded:emoji"
    images: Images = Images()
    batch_size: int = 8
    weight: float = 1.0
    size: int = 16
    queue: int = 24
    momentum: float = 0.9
    part: str = "backbones.shared"
    tokenizer: str = "image"
    backbone: str = "shared"

    def inputs(self, model: Model) -> Inputs:
        return columns(self.source, self.images.part(model.tokenizers[self.tokenizer].config.image_size))

    def heads(self, model: Model, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"projector": Projection(model.backbones[self.backbone].config.width, self.size, rngs=rngs)}

    def state(self, model: Model) -> dict[str, TaskState]:
        parts = (f"tokenizers.{self.tokenizer}", self.part, f"heads.{self.name}.projector")
        return {"encoder": Momentum(model, parts, self.momentum), "queue": Queue(self.queue, self.size)}

    def embed(self, model: Model, image: jax.Array) -> jax.Array:
        hidden, _ = model.backbones[self.backbone](model.tokenizers[self.tokenizer](image))
        return model.heads[self.name]["projector"](hidden)

    def loss(self, model: Model, batch: Mapping[str, jax.Array], *, key: jax.Array, step: jax.Array) -> Any:
        encoder, queue = model.state[self.name]["encoder"], model.state[self.name]["queue"]
        queries = self.embed(model, batch["image"])
        keys = self.embed(encoder.of(model), batch["image"][:, :, ::-1])
        queue.push(keys)
        negative = jnp.where(queue.valid()[None], queries @ queue.rows.get_value().T, -1e9)
        logits = jnp.concatenate([(queries * keys).sum(axis=1, keepdims=True), negative], axis=1) / 0.2
        return -jax.nn.log_softmax(logits)[:, 0].mean(), {"negatives": queue.valid().sum().astype(jnp.float32)}

    def evaluations(self) -> dict[str, Evaluation]:
        return {}


def experiment(**changes: Any) -> Experiment:
    small = dict(backbones__shared=dict(width=16, depth=1, heads=2), tasks__moco=dict(batch_size=8))
    config = tiny.plain("moco", steps=4, optimizer__name="sgd", **small, **changes)
    return build(config, lambda kind: {"moco": Moco}[kind])


def trained(workdir: Path, **changes: Any) -> tuple[Experiment, Any]:
    made = experiment(**changes)
    batches = {task.name: made.train_batches(task) for task in made.tasks}
    state, _, _ = train(made.program, Work(made.tasks, batches, made.tokens), made.loop, workdir)
    return made, state


def test_a_task_needs_no_plumbing(tmp_path: Path) -> None:
    with unittest.mock.patch.object(Checkpoints, "save", return_value=""):
        _, micro = trained(tmp_path / "micro", ema=0.9, optimizer__accumulate=4, mesh=dict(data=2))
    made, state = trained(tmp_path / "run", ema=0.9)
    rows = tiny.logged(tmp_path / "run")["moco"]
    assert [rows[step]["negatives"] for step in (1, 2, 3, 4)] == [0, 8, 16, 24]
    assert rows[1]["loss"] == pytest.approx(0, abs=1e-6) and rows[4]["loss"] > 0.5
    copied, own = (named(t) for t in (state.kept, state.parameters))
    prefix = "state.moco.encoder.weights."
    copies = {name.removeprefix(prefix): value for name, value in copied.items() if name.startswith(prefix)}
    assert set(copies) == {name for name in own if name.split(".")[1] in ("image", "shared", "moco")}
    # With four micro-batches on another mesh: the same rows in the same order.
    for name, value in named((state.kept, state.ema)).items():
        np.testing.assert_allclose(named((micro.kept, micro.ema))[name], value, rtol=1e-3, atol=1e-4, err_msg=name)

    table = parameter_table(made.model, made.mesh)
    assert parameter_count(table) == sum(value.size for value in own.values()) and len(table) == len(own)
    shown = describe(made)
    count = sum(value.size for value in copies.values()) + 24 * 16 + 2
    assert f"kept       {count:,} numbers in {len(copies) + 3} arrays, {4 * count:,} bytes per device" in shown
    assert f"average    {parameter_count(table) + 1:,} numbers in {len(own) + 1} arrays" in shown
    (tmp_path / "run" / "config.json").write_text("{}")
    start = experiment(init_from=str(tmp_path / "run"), init_ema=True)
    assert not any("state." in name or "queue" in name for name in start.start.fresh)
    begun = start.program.init()
    for name, value in named(begun.parameters).items():
        np.testing.assert_array_equal(value, named(state.ema.values)[name])
        if name in copies:
            np.testing.assert_array_equal(named(begun.kept)[prefix + name], value)


def test_slips_are_one_line() -> None:
    for field, message in (
        (
            dict(part="backbones.shard"),
            "a momentum copy of 'backbones.shard': there is no such part; there is backbones.shar",
        ),
        (dict(queue=0), "a queue must hold at least 1 row, but its size is 0"),
        (dict(momentum=1.5), "momentum of a momentum copy must be from 0 to 1, but is 1.5"),
    ):
        with pytest.raises(UsageError, match=message):
            build(tiny.plain("moco", tasks__moco=dict(batch_size=8, **field)), lambda kind: Moco)
    with pytest.raises(UsageError, match=r"a queue of rows \[4\] cannot take rows \[5\]"):
        Queue(3, 4).push(jnp.zeros((2, 5)))
