"""Experts: tokens of a modality have an MLP of their own, attention is everybody's."""

from __future__ import annotations

import json
import unittest.mock
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from unimodal import Backbone, BackboneConfig, concat
from unimodal.backbone import rope_table
from unimodal.decoding import Decoder, Sampling, decode
from unimodal.errors import UsageError
from unimodal.sharding import path_name
from unimodal.tokens import Tokens, tokens
from unimodal.training.checkpoint import Checkpoints

B, D = 2, 16
SMALL: dict[str, Any] = dict(width=D, depth=3, heads=2, rope_theta=100.0)


def backbone(**changes: Any) -> Backbone:
    """A backbone whose weights, norms' too, all differ from one another."""
    made = Backbone(BackboneConfig(**SMALL | changes), rngs=nnx.Rngs(0))
    leaves, tree = jax.tree.flatten(made)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def row(*parts: tuple[str, int], seed: int = 0, causal: bool = False) -> Tokens:
    """A stretch of random tokens for each (modality, length)."""
    keys = jax.random.split(jax.random.key(seed), len(parts))
    made = [
        tokens(jax.random.normal(key, (B, length, D)), causal=causal, modality=modality)
        for key, (modality, length) in zip(keys, parts, strict=True)
    ]
    return concat(*made)


def with_expert_as_shared(model: Backbone, name: str) -> Backbone:
    """The same model with the shared MLP and norm in the place of an expert's."""
    other = nnx.clone(model)
    for block in [other.layers] if other.config.scan else other.layers:
        block.experts[name].mlp, block.experts[name].mlp_norm = block.mlp, block.mlp_norm
    return other


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("position", ["pre", "post", "sandwich"])
def test_experts_that_are_the_shared_mlp_change_nothing(position: str, scan: bool) -> None:
    plain = backbone(norm_position=position, scan=scan)
    model = backbone(norm_position=position, scan=scan, experts=("image",))
    theirs = dict(nnx.to_flat_state(nnx.state(plain)))
    nnx.update(
        model, nnx.from_flat_state({path: theirs.get(path, leaf) for path, leaf in nnx.to_flat_state(nnx.state(model))})
    )
    given = row(("text", 3), ("image", 5), ("text", 4))
    wanted = plain(given)[0]
    np.testing.assert_allclose(with_expert_as_shared(model, "image")(given)[0], wanted, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(model(given)[0] - wanted).max()) > 0.05
    words = row(("text", 3), ("", 4))
    np.testing.assert_allclose(model(words)[0], plain(words)[0], rtol=1e-6, atol=1e-6)


def test_a_layer_by_hand() -> None:
    model = backbone(depth=1, scan=False, experts=("image", "audio"))
    given = row(("image", 2), ("text", 3), ("audio", 4))
    block = model.layers[0]
    x = given.x
    attended, _ = block.attention(block.attention_norm(x), given.layout, None, rope_table(given.position, 8, 100.0))
    x = x + attended
    parts = [(block.experts["image"], x[:, :2]), (block, x[:, 2:5]), (block.experts["audio"], x[:, 5:])]
    x = x + jnp.concatenate([part.mlp(part.mlp_norm(piece)) for part, piece in parts], axis=1)
    np.testing.assert_allclose(model(given)[0], model.final_norm(x), rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_experts_that_read() -> None:
    model = backbone(experts=("image", "audio"))

    def loss(model: Backbone) -> jax.Array:
        return jnp.square(model(row(("image", 2), ("text", 3)))[0]).sum()

    found = jax.grad(loss)(model)
    size = {
        name: float(jnp.abs(found.layers.experts[name].mlp.up.kernel.get_value()).sum()) for name in ("image", "audio")
    }
    assert size["image"] > 1 and size["audio"] == 0


def test_stacked_and_unstacked() -> None:
    model, given = backbone(experts=("image",)), row(("image", 4), ("text", 3))
    np.testing.assert_allclose(model.unstacked()(given)[0], model(given)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.unstacked().stacked()(given)[0], model(given)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_decoding_with_a_cache_is_decoding_without(modality: str) -> None:
    """What is written has its modality's expert, after a prefix of another."""
    model, table = backbone(experts=("image",)), jax.random.normal(jax.random.key(5), (7, D))
    decoder = Decoder(model, lambda ids, place: table[ids], lambda hidden, place: hidden @ table.T, modality=modality)
    prefix = row(("image", 3), ("text", 2))
    written = decode(decoder, prefix, jax.random.key(0), steps=5, sampling=Sampling(temperature=0.0))
    ids = jnp.zeros((B, 0), jnp.int32)
    for _ in range(5):
        whole = concat(prefix, tokens(table[ids], causal=True, modality=modality)) if ids.shape[1] else prefix
        ids = jnp.concatenate([ids, (model(whole)[0][:, -1] @ table.T).argmax(-1)[:, None].astype(jnp.int32)], axis=1)
    np.testing.assert_array_equal(written, ids)


def shared(folder: Path, **mesh: int) -> tiny.Run:
    """Two tasks over experts. It saves nothing: to fingerprint so many arrays in so many pieces takes long to compile."""
    changes = dict(steps=4, backbones__shared__experts=("image", "audio"), optimizer__weight_decay=0.0)
    with unittest.mock.patch.object(Checkpoints, "save", return_value=""):
        return tiny.train(tiny.plain("gpt", "clip", mesh=mesh, **changes), folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tiny.Run:
    """The run on one device."""
    return shared(tmp_path_factory.mktemp("one"), data=1)


@pytest.mark.parametrize(
    "mesh", [dict(data=2, fsdp=2, tensor=2), dict(data=2, sequence=4)], ids=["2,2,2", "sequence=4"]
)
def test_tasks_share_experts_and_learn_on_a_mesh(tmp_path: Path, one: tiny.Run, mesh: dict[str, int]) -> None:
    """Metrics of one device; each expert is moved by the tasks of its modality, and by no others."""
    many = shared(tmp_path, **mesh)
    for task in ("gpt", "clip"):
        np.testing.assert_allclose(list(many.losses(task).values()), list(one.losses(task).values()), rtol=1e-4)
    before, after = many.experiment.program.first_model(), many.experiment.program.model(many.state)
    moved = {}
    for name in ("image", "audio"):
        kernels = [m.backbones["shared"].layers.experts[name].mlp.up.kernel.get_value() for m in (before, after)]
        moved[name] = float(jnp.abs(kernels[1] - kernels[0]).max())
    assert moved["image"] > 1e-4 and moved["audio"] == 0.0
    if "tensor" in mesh:
        assert kernels[1].sharding.shard_shape(kernels[1].shape) == (
            2,
            kernels[1].shape[1] // 2,
            kernels[1].shape[2] // 2,
        )


def test_wrong_experts_are_one_line() -> None:
    with pytest.raises(
        UsageError, match=r"backbones.shared.experts: no tokenizer makes 'picture'; there is audio, image, text"
    ):
        tiny.build(tiny.plain("gpt", backbones__shared__experts=("picture",)))
    with pytest.raises(UsageError, match="backbone.experts must name modalities, each once"):
        BackboneConfig(**SMALL, experts=("image", "image"))


@pytest.mark.parametrize("scan", [True, False])
def test_experts_begin_as_the_mlp_that_a_run_without_them_has(scan: bool, tmp_path: Path) -> None:
    without = tiny.plain("vit", steps=1, backbones__shared__scan=scan)
    run = tiny.train(without, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(without))

    def begun(**changes: Any) -> tuple[Any, dict[str, np.ndarray]]:
        options = dict(steps=2, init_from=str(tmp_path), backbones__shared__scan=scan)
        experiment = tiny.build(tiny.plain("vit", **options | changes))
        leaves = jax.tree_util.tree_leaves_with_path(experiment.program.init().parameters)
        return experiment, {path_name(path): np.asarray(leaf) for path, leaf in leaves}

    experiment, found = begun(backbones__shared__experts=("image",))
    experts = [name for name in found if ".experts." in name]
    assert experts and not [name for name in experiment.start.fresh if ".experts." in name]
    for name in experts:
        np.testing.assert_array_equal(found[name], found[name.replace(".experts.image", "")], err_msg=name)
        assert f"copied  {name}  from {name.replace('.experts.image', '')}" in experiment.start.report()
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 16, 16, 3)), jnp.float32)
    ours, theirs = (program.first_model() for program in (experiment.program, run.experiment.program))
    nnx.update(theirs, run.state.parameters)
    read = [model.backbones["shared"](model.tokenizers["image"](image))[0] for model in (ours, theirs)]
    np.testing.assert_allclose(*read, atol=1e-6)
    # What is to start afresh does.
    _, other = begun(backbones__shared__experts=("image",), init_skip="experts")
    kernels = [name for name in experts if name.endswith("kernel")]
    assert kernels and not any(np.array_equal(found[name], other[name]) for name in kernels)
