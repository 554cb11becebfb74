"""SimCLR, MoCo and SwAV as tasks: batches in parts, meshes, going on with a queue, collapse, and slips."""

from __future__ import annotations

import dataclasses
import unittest.mock
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from quick import named

from tasks.simclr import Simclr
from tasks.swav import Swav
from unimodal.errors import UsageError
from unimodal.experiment import build
from unimodal.joint_embedding import BatchNorm, Projector, Prototypes
from unimodal.objectives import unit
from unimodal.training.checkpoint import Checkpoints

# All in one model, as compiling is what takes time. MoCo twice: with a queue, and without.
TASKS: dict[str, dict[str, Any]] = {
    "simclr": {},
    "moco": {},
    "with_queue": dict(
        kind="moco", queue=24, projector=dict(norm="none", last_norm=False), momentum=0.9, final_momentum=None
    ),
    # Layer norm, as a queue is filled by the statistics of what one pass sees, which is less where a batch is in parts.
    "swav": dict(
        queue=16,
        prototypes=20,
        projector=dict(norm="layer"),
        views=dict(crop=(0.5, 1.0), small=1, small_size=(8, 8)),
    ),
}


def plain(**changes: Any) -> dict[str, Any]:
    small = dict(backbones__shared=dict(width=16, depth=1, heads=2), optimizer__name="sgd")
    config = tiny.plain("simclr", steps=4, tokenizers__image__resize=True, **small, **changes)
    config["tasks"] = {name: dict(batch_size=8) | fields for name, fields in TASKS.items()}
    return config


def test_in_parts_on_a_mesh_and_after_a_break(tmp_path: Path) -> None:
    whole = tiny.train(plain(), tmp_path / "whole")
    tiny.train(plain(stop_after=2), tmp_path / "parts")
    rest = tiny.train(plain(), tmp_path / "parts")
    assert rest.fingerprint == whole.fingerprint  # momentum and queues included
    for task in TASKS:
        assert rest.losses(task) == whole.losses(task)
        assert len(set(whole.losses(task).values())) == 4

    with unittest.mock.patch.object(Checkpoints, "save", return_value=""):
        mesh = dict(mesh=dict(data=2, fsdp=2), optimizer__accumulate=2)
        sharded = tiny.train(plain(**mesh), tmp_path / "sharded")
    for task in TASKS:
        for step, row in whole.metrics[task].items():
            other = sharded.metrics[task][step]
            assert row.keys() == other.keys()
            for name in row.keys() - {"input_wait_seconds"}:
                message = f"{task} {name} at {step}"
                np.testing.assert_allclose(other[name], row[name], rtol=1e-4, atol=1e-5, err_msg=message)
    for name, value in named((whole.state.parameters, whole.state.kept)).items():
        found = named((sharded.state.parameters, sharded.state.kept))[name]
        np.testing.assert_allclose(found, value, rtol=1e-3, atol=2e-5, err_msg=name)
    kept = named(whole.state.kept)
    assert kept["state.with_queue.queue.filled"] == 24 and kept["state.swav.queue.filled"] == 16


@dataclasses.dataclass(frozen=True)
class Attraction(Simclr):
    """Nothing but agreement, without negatives: features collapse."""

    def loss(self, model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> Any:
        x = self.features(model, batch, key)
        return jnp.square(x[:, 0] - x[:, 1]).sum(axis=1).mean(), {}


def test_a_forced_collapse_is_seen(tmp_path: Path) -> None:
    def score(task: type[Simclr], seed: int) -> dict[str, Any]:
        from unimodal.training.loop import train
        from unimodal.training.work import Work

        config = tiny.plain("simclr", steps=40, optimizer__weight_decay=0.0, optimizer__learning_rate=1e-2)
        config["tasks"]["simclr"] |= dict(batch_size=32)
        config["evaluations"] = dict(rank=dict(kind="effective_rank", source="embedded:emoji"))
        made = build(config, lambda kind: task)
        batches = {each.name: made.train_batches(each) for each in made.tasks}
        state, _, _ = train(made.program, Work(made.tasks, batches, made.tokens), made.loop, tmp_path / str(seed))
        model = made.program.model(state)
        found = dict(made.evaluations["simclr"].measure(model, made.reader, limit=4).score)
        return found | {"rank": made.evaluations["rank"].measure(model, made.reader, limit=4).score["value"]}

    collapsed, healthy = score(Attraction, 0), score(Simclr, 1)
    assert collapsed["effective_rank"] < 0.5 * healthy["effective_rank"]
    assert collapsed["rank"] < 0.5 * healthy["rank"]
    assert collapsed["feature_deviation"] < 0.5 * healthy["feature_deviation"]


def test_batch_norm_is_over_all_but_the_last_dimension() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, (8, 2, 5)).astype(np.float32)
    flat = x.reshape(16, 5)
    wanted = ((flat - flat.mean(axis=0)) / np.sqrt(flat.var(axis=0) + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(BatchNorm(5)(jnp.asarray(x)), wanted, atol=1e-5)


def test_prototypes_begin_at_unit_length() -> None:
    """As the authors keep them: an Adam step turns a vector by its rate over the vector's length."""
    table = np.asarray(Prototypes(256, 50, rngs=nnx.Rngs(0)).table.get_value())
    lengths = np.linalg.norm(table, axis=0)
    assert lengths.shape == (50,) and lengths.min() > 0.8 and lengths.max() < 1.2


def test_views_that_are_compared_are_dropped_each_for_itself() -> None:
    """Of one picture as both views, and as a small one, features differ by what dropout and stochastic depth leave out."""
    lively = dict(dropout=0.2, stochastic_depth=0.5)
    experiment = tiny.build(plain() | dict(backbones=dict(shared=dict(width=16, depth=2, heads=2, **lively))))
    model = experiment.program.model(experiment.program.init())
    tasks = {task.name: task for task in experiment.tasks}
    picture = np.random.default_rng(0).standard_normal((8, 1, 16, 16, 3)).astype(np.float32)
    batch = {"views": jnp.asarray(np.repeat(picture, 2, axis=1)), "small_views": jnp.asarray(picture)}

    large = tasks["swav"].features(model, {"views": batch["small_views"]}, jax.random.key(0))
    both = tasks["swav"].features(model, {**batch, "views": batch["small_views"]}, jax.random.key(0))
    np.testing.assert_array_equal(both[:, 0], large[:, 0])
    assert np.abs(both[:, 0] - both[:, 1]).max(axis=1).min() > 1e-3

    term, _ = tasks["with_queue"].loss(model, batch, key=jax.random.key(0), step=jnp.int32(0))
    (features, keys), projector = term.rows, model.heads["with_queue"]["projector"]
    assert np.abs(unit(projector(features)) - keys).max(axis=1).min() > 1e-3  # the slow copy begins as the encoder


def test_slips_are_one_line() -> None:
    for kind, fields, message in (
        ("swav", dict(prototypes=30, queue=16), r"swav.prototypes is 30, but batch_size \+ queue are 24 examples"),
        ("swav", dict(views=dict(count=1)), "swav.views.count must be at least 2, but is 1"),
        ("swav", dict(views=dict(small=1, small_size=(8, 8))), "views of 8x8 pixels need tokenizers.image.resize=True"),
        ("swav", dict(views=dict(small=1, small_size=(12, 8))), "small_size 12x8 is not divisible by patch=8"),
        ("swav", dict(views=dict(small=1, small_size=(4, 4))), "small_size 4x4 is smaller than patch=8"),
        (
            "moco",
            dict(views=dict(count=3)),
            "moco compares two views of a picture, but moco.views has count=3 and small=0",
        ),
        (
            "moco",
            dict(queue=8, projector=dict(norm="batch")),
            "moco.queue needs keys that do not depend on their batch",
        ),
        ("simclr", dict(projector=dict(norm="group")), "a projector's norm must be one of batch, layer, none"),
    ):
        config = tiny.plain(kind)
        config["tasks"][kind] |= fields
        with pytest.raises(UsageError, match=message):
            made = tiny.build(config)
            (task,) = made.tasks
            spec = task.inputs(made.model).spec
            batch = {k: jax.ShapeDtypeStruct((8, *each.shape), each.dtype) for k, each in spec.items()}
            jax.eval_shape(lambda m, b, t=task: t.loss(m, b, key=jax.random.key(0), step=0), made.model, batch)
    with pytest.raises(UsageError, match="needs layers, hidden and size of 1 or more, but has 0, 256, 64"):
        Projector(layers=0)
    with pytest.raises(UsageError, match="a projector with last_norm needs norm=batch or norm=layer"):
        Projector(norm="none", last_norm=True)
    assert Swav(prototypes=128).prototypes == 128
