"""A checkpoint restores onto any mesh, with layers stacked or unrolled, to the same bits: what a run or another one starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from unimodal.backbone import Backbone, BackboneConfig
from unimodal.errors import UsageError
from unimodal.sharding import make_mesh
from unimodal.training.adapt import fit
from unimodal.training.checkpoint import Checkpoints, named, spelt
from unimodal.training.layouts import held, shapes_as
from unimodal.training.optimizer import OptimizerConfig, make_optimizer
from unimodal.training.step import Program
from unimodal.training.workdir_start import start_from_workdir

LAYERS = "backbone.layers."


class Small(nnx.Module):
    """A backbone, and nothing else to compile."""

    def __init__(self, config: BackboneConfig, rngs: nnx.Rngs):
        self.backbone = Backbone(config, rngs=rngs)


def program(mesh: Mapping[str, int], scan: bool = True, **changes: Any) -> Program:
    """With Adam's moments and an average of the parameters."""
    config = BackboneConfig(**{**dict(width=8, depth=2, heads=2, scan=scan), **changes})
    optimizer = make_optimizer(OptimizerConfig(), 10)
    make = lambda key: Small(config, nnx.Rngs(key))  # noqa: E731
    return Program(make, optimizer, make_mesh(**mesh), seed=0, ema=0.9)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, np.ndarray]]:
    """A checkpoint of eight devices in which no two numbers are alike, its fingerprint and its arrays."""
    abstract = program(dict(data=2, fsdp=2, tensor=2)).abstract_state()
    rng = np.random.default_rng(0)

    def made(leaf: Any) -> jax.Array:
        value = np.asarray(7 if leaf.ndim == 0 else 100 * rng.random(leaf.shape)).astype(leaf.dtype)
        return jax.device_put(value, leaf.sharding)

    state = jax.tree.map(made, abstract)
    workdir = tmp_path_factory.mktemp("eight")
    (workdir / "config.json").write_text("{}")
    with Checkpoints(workdir) as checkpoints:
        fingerprint = checkpoints.save(state, {})
    return workdir, fingerprint, jax.device_get(named(state))


def restored(workdir: Path, mesh: Mapping[str, int], scan: bool = True) -> Any:
    with Checkpoints(workdir, create=False) as checkpoints:
        return checkpoints.restore(program(mesh, scan).abstract_state())[0]


def moved(workdir: Path, target: Path, mesh: Mapping[str, int], scan: bool = True) -> tuple[str, dict[str, Any]]:
    """Restore onto another mesh and save from there: the new fingerprint, and the arrays."""
    state = restored(workdir, mesh, scan)
    with Checkpoints(target) as checkpoints:
        return checkpoints.save(state, {}), named(state)


def unrolled(found: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Each layer has the bits of its place in the stack."""
    for name, value in found.items():
        layer = re.search(r"\.layers\.(\d)\.", name)
        whole = arrays[name] if layer is None else arrays[name.replace(layer[0], ".layers.")][int(layer[1])]
        assert value.dtype == whole.dtype and np.array_equal(value, whole), name
    for part in ("parameters.", "optimizer.inner.", "ema.values."):
        assert any(name.startswith(part) and ".layers.1." in name for name in found), part


def test_eight_one_four_and_two_by_two(eight: tuple[Path, str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    workdir, fingerprint, arrays = eight
    _, one = moved(workdir, tmp_path / "one", dict(data=1), scan=False)
    unrolled(one, arrays)
    found, four = moved(tmp_path / "one", tmp_path / "four", dict(fsdp=4, data=1))
    assert found == fingerprint  # stacked again: the same names, and the same bits
    assert four[f"parameters.{LAYERS}mlp.up.kernel"].addressable_shards[0].data.shape == (2, 2, 32)
    two = named(restored(tmp_path / "four", dict(data=1, fsdp=2, tensor=2), scan=False))
    assert two[f"parameters.{LAYERS}1.mlp.up.kernel"].addressable_shards[0].data.shape == (4, 16)
    unrolled(two, arrays)


def test_another_run_starts_from_layers_that_lie_otherwise(eight: tuple[Path, str, dict[str, np.ndarray]]) -> None:
    workdir, _, arrays = eight
    abstract = program(dict(data=1), scan=False).abstract_state()
    parameters = abstract.parameters
    for ema, part in ((False, "parameters."), (True, "ema.values.")):
        start = start_from_workdir(workdir, parameters, ema=ema)
        assert not start.fresh and not start.unused
        found = named(start.fill(parameters))
        up = f"{LAYERS}1.mlp.up.kernel"
        np.testing.assert_array_equal(found[up], arrays[f"{part}{LAYERS}mlp.up.kernel"][1])
    with Checkpoints(workdir, create=False) as checkpoints:
        shapes = checkpoints.shapes(7)
    told = fit(7, abstract, shapes)
    assert not told.fresh and not told.left


def test_what_cannot_be_is_named(eight: tuple[Path, str, dict[str, np.ndarray]]) -> None:
    with Checkpoints(eight[0], create=False) as checkpoints:
        for change, line in (
            (dict(depth=3), r"layers\.2\S+ and \d+ more are in the model but not in the checkpoint"),
            (dict(param_dtype="bfloat16"), r"is bfloat16\[\S* ?\S*\] in the model, float32"),
        ):
            abstract = program(dict(data=1), scan=False, **change).abstract_state()
            with pytest.raises(UsageError, match=line):
                checkpoints.restore(abstract)


def test_names_by_hand() -> None:
    stacked = {"a.layers.x.y": "float32[2, 3]", "a.layers.n": "int32[2]", "b": "float32[]", "layers.s": "int32[]"}
    apart = {f"a.layers.{i}.{end}": s for i in (0, 1) for end, s in (("x.y", "float32[3]"), ("n", "int32[]"))}
    assert shapes_as(stacked, {**apart, "b": ""}) == {**apart, "b": "float32[]", "layers.s": "int32[]"}
    assert shapes_as(apart, stacked) == {"a.layers.x.y": "float32[2, 3]", "a.layers.n": "int32[2]"}
    assert held(apart, stacked)["a.layers.n"].names == ("a.layers.0.n", "a.layers.1.n")
    assert shapes_as(stacked, stacked) == stacked and shapes_as(apart, apart) == apart
    copied = {f"kept.state.moco.encoder.{name}": shape for name, shape in stacked.items()}
    there = {f"kept.state.moco.encoder.{name}": shape for name, shape in apart.items()}
    assert shapes_as(copied, there).keys() >= there.keys()
    torn = {**apart, "a.layers.1.n": "int32[4]"}  # layers of two shapes are no stack
    assert shapes_as(torn, stacked) == {
        "a.layers.x.y": "float32[2, 3]",
        "a.layers.0.n": "int32[]",
        "a.layers.1.n": "int32[4]",
    }
    assert spelt({"a": np.zeros((2, 3), np.float32)}) == {"a": "float32[2, 3]"}
