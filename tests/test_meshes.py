"""Every task on every mesh: the numbers of one device, and arrays that really are in pieces."""

from __future__ import annotations

import functools
import tempfile
import unittest.mock
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from unimodal import sharding
from unimodal.layers import Linear
from unimodal.training.checkpoint import Checkpoints, named

ONE = dict(data=1)
MESHES = {
    "data=8": dict(data=8),
    "fsdp=8": dict(data=1, fsdp=8),
    "tensor=4": dict(data=1, tensor=4),
    "data=2,fsdp=2,tensor=2": dict(data=2, fsdp=2, tensor=2),
}
# All tasks together compile for minutes on each mesh. 2·2·2 splits along every axis of the others, so they are long.
LONG = [mesh if "," in mesh else pytest.param(mesh, marks=pytest.mark.long) for mesh in MESHES]
STEPS = 20
FEW = 8  # of them on several devices: enough for gradients, moments and the schedule to have made a difference


def train(*kinds: str, **changes: Any) -> tiny.Run:
    """A run that saves nothing: to fingerprint so many arrays in so many pieces takes long to compile."""
    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.object(Checkpoints, "save", return_value=""):
        return tiny.train(tiny.plain(*kinds, **changes), Path(folder))


@functools.cache
def joint(**mesh: int) -> tiny.Run:
    """All tasks summed in one step, once per mesh."""
    return train(steps=STEPS, stop_after=None if mesh == ONE else FEW, mesh=mesh)


def compare(run: tiny.Run, reference: tiny.Run, task: str, steps: int | None = None) -> None:
    """Same steps (the first `steps` of the reference's, or all), same metrics, to 1e-4 relative."""
    found, wanted = run.metrics[task], reference.metrics[task]
    assert list(found) == list(wanted)[:steps]
    for step in found:
        metrics = wanted[step]
        assert found[step].keys() == metrics.keys()
        for name in metrics.keys() - {"input_wait_seconds"}:
            message = f"{task}.{name} at step {step}"
            np.testing.assert_allclose(found[step][name], metrics[name], rtol=1e-4, atol=1e-6, err_msg=message)


@pytest.mark.parametrize("mesh", LONG)
@pytest.mark.parametrize("task", tiny.KINDS)
def test_metrics_are_those_of_one_device(task: str, mesh: str) -> None:
    reference = joint(**ONE)
    assert list(reference.losses(task)) == list(range(1, STEPS + 1))
    compare(joint(**MESHES[mesh]), reference, task, FEW)


@pytest.mark.parametrize("task", tiny.KINDS)
def test_the_tiny_config_learns(task: str) -> None:
    # Were nothing learned, agreeing meshes would say little about gradients and the optimizer.
    losses = list(joint(**ONE).losses(task).values())
    assert np.mean(losses[-5:]) < np.mean(losses[:3])


SHARDS = {  # of backbones.shared.layers.mlp.up.kernel [layers=2, embed=32, mlp=128] and attention.query.kernel [2,32,4,8]
    "data=8": ((2, 32, 128), (2, 32, 4, 8)),
    "fsdp=8": ((2, 4, 128), (2, 4, 4, 8)),
    "tensor=4": ((2, 32, 32), (2, 32, 1, 8)),
    "data=2,fsdp=2,tensor=2": ((2, 16, 64), (2, 16, 2, 8)),
}


@pytest.mark.parametrize("mesh", LONG)
def test_parameters_and_moments_are_in_pieces(mesh: str) -> None:
    run = joint(**MESHES[mesh])
    layers = run.state.parameters["backbones"]["shared"]["layers"]
    up, query = layers["mlp"]["up"]["kernel"], layers["attention"]["query"]["kernel"]
    found = tuple(p.get_value().addressable_shards[0].data.shape for p in (up, query))
    assert found == SHARDS[mesh]

    leaves = names(run.state.parameters)
    table = {row["name"]: row for row in sharding.parameter_table(run.state.parameters, run.experiment.mesh)}
    for name, leaf in leaves.items():
        assert leaf.addressable_shards[0].data.nbytes == table[name]["bytes_per_device"], name
    moments = names(run.state.optimizer)
    for name, leaf in leaves.items():
        own = [where for where in (f"inner.{name}.0.mu", f"inner.{name}.0.nu") if where in moments]
        assert len(own) == 2, name
        for where in own:
            assert moments[where].sharding.is_equivalent_to(leaf.sharding, leaf.ndim), where


@pytest.mark.long
def test_bytes_per_device_shrink_with_the_mesh() -> None:
    def held(run: tiny.Run, part: str = "") -> int:
        leaves = named(run.state).items()
        return sum(leaf.addressable_shards[0].data.nbytes for name, leaf in leaves if part in name)

    whole = held(joint(**ONE))
    assert held(joint(**MESHES["data=8"])) == whole
    assert held(joint(**MESHES["fsdp=8"])) < 0.35 * whole
    # Along `tensor` the backbone is split. Of tokenizers and heads much is whole, and here they are most of the model.
    layers = held(joint(**ONE), "backbones.")
    assert held(joint(**MESHES["tensor=4"]), "backbones.") < 0.5 * layers
    assert held(joint(**MESHES["data=2,fsdp=2,tensor=2"])) < 0.5 * whole


def test_arrays_are_born_in_their_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(key: jax.Array) -> Linear:
        return Linear((1024,), (1024,), ("embed", "mlp"), bias=False, rngs=nnx.Rngs(key))

    programs: list[Any] = []
    real = jax.jit

    def recording(*args: Any, **options: Any) -> Any:
        programs.append(real(*args, **options))
        return programs[-1]

    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    key = jax.random.key(0)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", recording)
        kernel = sharding.initialise(make, mesh, key).kernel.get_value()
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(256, 512)}
    with jax.set_mesh(mesh):
        memory = programs[-1].lower(key).compile().memory_analysis()
    # Of 4 MiB, each device holds an eighth, and while it is made never as much as the whole.
    assert memory.output_size_in_bytes < 1.1 * 2**22 / 8
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**22
    # Compiled for other shapes the normal's polynomial may round its last bit otherwise.
    np.testing.assert_allclose(np.asarray(kernel), np.asarray(make(key).kernel.get_value()), rtol=1e-6, atol=0)


def test_alternating_tasks_on_a_mesh() -> None:
    def run(**mesh: int) -> tiny.Run:
        return train("gpt", "vit", steps=9, schedule="alternate", mesh=mesh, tasks__gpt__weight=2.0)

    reference, sharded = run(**ONE), run(data=2, fsdp=2, tensor=2)
    for task in ("gpt", "vit"):
        compare(sharded, reference, task)
    assert len(reference.losses("gpt")) == 6
    assert len(reference.losses("vit")) == 3
    assert not reference.losses("gpt").keys() & reference.losses("vit").keys()


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    # The loss of vit is a mean over examples, so micro-batches must average to it, on one device and on several.
    whole = train("vit", steps=5)
    parts = train("vit", steps=5, optimizer__accumulate=2, mesh=dict(data=2, fsdp=2))
    compare(parts, whole, "vit")
    for name, leaf in names(whole.state.parameters).items():
        other = names(parts.state.parameters)[name]
        np.testing.assert_allclose(np.asarray(other), np.asarray(leaf), rtol=1e-3, atol=2e-5, err_msg=name)


def names(tree: Any) -> dict[str, jax.Array]:
    """Leaves by dotted path."""
    return {sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
