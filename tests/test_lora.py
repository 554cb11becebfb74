"""LoRA: the base exactly at first, W + (α/r)·A·B after, under scan and shards; adapters come and go as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx

from unimodal import Backbone, BackboneConfig, UsageError
from unimodal.interop import load_huggingface
from unimodal.lora import Adapters, apply, load, lora, merge, save
from unimodal.sharding import make_mesh, path_name, shardings
from unimodal.tokens import tokens

BERT = Path(__file__).parent / "reference" / "interop" / "bert_masked_lm"
X = tokens(jnp.asarray(np.random.default_rng(0).normal(size=(8, 5, 16)), jnp.float32))
EVERYTHING = "kernel"  # attention's output contracts two dimensions, its query makes two


def backbone(*, scan: bool = True, seed: int = 0) -> Backbone:
    return Backbone(BackboneConfig(width=16, depth=2, heads=8, scan=scan), rngs=nnx.Rngs(seed))


def trained(adapters: Adapters, seed: int = 1) -> Adapters:
    """With every number of A and B something."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda v: v + jnp.asarray(0.1 * rng.normal(size=v.shape), v.dtype), adapters)


def hidden(model: Any) -> jax.Array:
    return model(X)[0]


def leaves(tree: Any) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def by_hand(model: Any, adapters: Adapters) -> Any:
    """W + (α/r)·A·B in numpy, layer by layer, as the paper has it."""
    new, scale = leaves(model), adapters.alpha / adapters.rank
    for name, pair in adapters.layers.items():
        kernel = new[f"{name}.kernel"]
        a, b = np.asarray(pair.a.get_value(), np.float64), np.asarray(pair.b.get_value(), np.float64)
        layers = range(kernel.shape[0]) if model.config.scan else [slice(None)]
        change = [scale * a[i].reshape(-1, adapters.rank) @ b[i].reshape(adapters.rank, -1) for i in layers]
        new[f"{name}.kernel"] = (kernel + np.stack(change).reshape(kernel.shape)).astype(np.float32)
    return jax.tree.unflatten(jax.tree.structure(model), list(new.values()))


@pytest.mark.parametrize("scan", [True, False])
def test_begins_as_the_base_exactly(scan: bool) -> None:
    model = backbone(scan=scan)
    adapters = lora(model, rank=3, where=EVERYTHING)
    assert len(adapters.layers) == (6 if scan else 12)
    assert np.array_equal(jax.jit(hidden)(apply(model, adapters)), jax.jit(hidden)(model))
    for name, before in leaves(model).items():
        assert np.array_equal(leaves(merge(model, adapters))[name], before), name


@pytest.mark.parametrize("scan", [True, False])
def test_is_w_plus_a_times_b(scan: bool) -> None:
    model = backbone(scan=scan)
    adapters = trained(lora(model, rank=3, alpha=5.0, where=EVERYTHING))
    wanted = by_hand(model, adapters)
    merged = merge(model, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    for name, value in leaves(wanted).items():
        np.testing.assert_allclose(leaves(merged)[name], value, atol=1e-6, err_msg=name)
    base, ours, theirs = (jax.jit(hidden)(m) for m in (model, apply(model, adapters), wanted))
    assert np.abs(base - ours).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(jax.jit(hidden)(merged), theirs, atol=1e-5)


def test_stacked_and_unrolled_agree() -> None:
    model = backbone()
    adapters = trained(lora(model, rank=2))
    pairs = {
        f"layers.{i}.{name.removeprefix('layers.')}": jax.tree.map(lambda leaf, i=i: leaf[i], pair)
        for name, pair in adapters.layers.items()
        for i in range(2)
    }
    unrolled = Adapters(pairs, adapters.rank, adapters.alpha, adapters.where)
    found = jax.jit(hidden)(apply(model.unstacked(), unrolled))
    # Hidden states are up to 2, so this is one part in a million: float32 sums come in another order in each program.
    np.testing.assert_allclose(found, jax.jit(hidden)(apply(model, adapters)), atol=2e-6)


def test_gradients_are_those_of_the_merged_kernels() -> None:
    """dA and dB of W + (α/r)·A·B by the chain rule, from the gradient of the whole kernel."""
    model = backbone()
    adapters = trained(lora(model, rank=2, alpha=6.0))

    def loss(model: Any) -> jax.Array:
        return (hidden(model) * jnp.cos(jnp.arange(16.0))[None, None]).sum()

    ours = jax.jit(jax.grad(lambda adapters: loss(apply(model, adapters))))(adapters)
    assert jax.tree.structure(ours) == jax.tree.structure(adapters)  # nothing but adapters has one
    whole = leaves(jax.jit(jax.grad(loss))(merge(model, adapters)))
    for name, pair in ours.layers.items():
        d = whole[f"{name}.kernel"].reshape(2, 16, 16)
        a, b = (np.asarray(p.get_value()) for p in (adapters.layers[name].a, adapters.layers[name].b))
        d_a = 3.0 * np.einsum("lio,lro->lir", d, b.reshape(2, 2, 16))
        d_b = 3.0 * np.einsum("lir,lio->lro", a, d)
        np.testing.assert_allclose(pair.a.get_value(), d_a, atol=1e-3, rtol=1e-3)
        np.testing.assert_allclose(np.asarray(pair.b.get_value()).reshape(2, 2, 16), d_b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mesh_axes", [dict(fsdp=8), dict(tensor=2), dict(fsdp=4, tensor=2)])
def test_sharded_like_their_kernels_and_equal(mesh_axes: dict[str, int], tmp_path: Path) -> None:
    mesh = make_mesh(data=1, **mesh_axes)
    model = backbone()
    placed = jax.device_put(model, shardings(model, mesh))
    born = lora(model, rank=4, where=EVERYTHING, mesh=mesh)
    plain = lora(model, rank=4, where=EVERYTHING)
    for (name, ours), whole in zip(leaves(born).items(), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-6, err_msg=name)  # XLA may round the last bit otherwise
    query, down = born.layers["layers.attention.query"], born.layers["layers.mlp.down"]
    axis = next(iter(mesh_axes))
    split = {
        "fsdp": [(query.a, 1), (down.b, 2)],  # embed
        "tensor": [(query.b, 2), (down.a, 1)],  # heads, mlp
    }[axis]
    for parameter, dimension in split:
        value = parameter.get_value()
        shard = value.sharding.shard_shape(value.shape)
        assert shard[dimension] == value.shape[dimension] // mesh_axes[axis]
    plain, first = trained(plain), born
    save(plain, tmp_path / "adapters.safetensors", model)
    born = load(tmp_path / "adapters.safetensors", placed, mesh=mesh)
    for ours, before in zip(jax.tree.leaves(born), jax.tree.leaves(first), strict=True):
        assert ours.sharding == before.sharding
    with jax.set_mesh(mesh):
        found = jax.jit(hidden)(apply(placed, born))
        merged = merge(placed, born)
    np.testing.assert_allclose(found, jax.jit(hidden)(apply(model, plain)), atol=1e-5)
    for ours, before in zip(jax.tree.leaves(merged), jax.tree.leaves(placed), strict=True):
        assert ours.sharding == before.sharding
    for name, value in leaves(merge(model, plain)).items():
        np.testing.assert_allclose(leaves(merged)[name], value, atol=1e-6, err_msg=name)


def test_a_short_fine_tune_learns_and_leaves_the_base_alone(tmp_path: Path) -> None:
    model = load_huggingface(BERT)
    before = leaves(model)
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 61, (4, 8)), jnp.int32)
    adapters = lora(model, rank=4, where=r"(attention\.(query|value)|mlp\.up)\.kernel")
    optimizer = optax.adam(1e-2)

    def loss(adapters: Adapters) -> jax.Array:
        logits = apply(model, adapters)(text=ids)["logits"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids).mean()

    @jax.jit
    def step(adapters: Adapters, state: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(adapters)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(adapters, updates), state, value

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state, losses = optimizer.init(adapters), []
        for _ in range(30):
            adapters, state, value = step(adapters, state)
            losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0], losses
    for name, value in leaves(model).items():
        assert value.tobytes() == before[name].tobytes(), name
    save(adapters, tmp_path / "tuned.safetensors", model)
    again = load(tmp_path / "tuned.safetensors", load_huggingface(BERT))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert float(jax.jit(loss)(again)) < losses[-1]


def test_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    model, file = backbone(), tmp_path / "adapters.safetensors"
    adapters = trained(lora(model, rank=3, alpha=0.1, where=r"mlp\.", dtype=jnp.bfloat16))
    save(adapters, file, model)
    again = load(file, model)
    assert (again.rank, again.alpha, again.where) == (3, 0.1, r"mlp\.")
    assert jax.tree.structure(again) == jax.tree.structure(adapters)
    for (name, value), other in zip(leaves(adapters).items(), leaves(again).values(), strict=True):
        assert value.dtype == other.dtype
        assert value.tobytes() == other.tobytes(), name
    assert file.stat().st_size < 10_000  # the adapters alone
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_the_base_may_be_of_another_dtype(tmp_path: Path) -> None:
    model, file = backbone(), tmp_path / "adapters.safetensors"
    save(lora(model), file, model)
    load(file, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model))


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    model, file = backbone(), tmp_path / "adapters.safetensors"
    adapters = lora(model, rank=2)
    save(adapters, file, model)
    wider = Backbone(BackboneConfig(width=32, depth=2, heads=8), rngs=nnx.Rngs(0))
    deeper = Backbone(BackboneConfig(width=16, depth=3, heads=8), rngs=nnx.Rngs(0))
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:100])
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, tmp_path / "weights.safetensors")
    slips = {
        "layers.attention.query has A (2, 16, 2) and B (2, 2, 8, 2), but the model's kernel (2, 32, 8, 4)": (
            file,
            wider,
        ),
        "but the model's kernel (3, 16, 8, 2) takes (3, 16, 2) and (3, 2, 8, 2)": (file, deeper),
        "no linear layer layers.attention.query": (file, model.unstacked()),
        "were trained beside other weights: layers.attention.query differs": (file, backbone(seed=1)),
        "there is no file": (tmp_path / "none", model),
        "cut.safetensors is damaged": (tmp_path / "cut.safetensors", model),
        "holds no adapters": (tmp_path / "weights.safetensors", model),
    }
    for words, (path, base) in slips.items():
        with pytest.raises(UsageError) as caught:
            load(path, base)
        assert words in str(caught.value), str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    for call in (apply, merge):
        with pytest.raises(UsageError, match="these adapters do not fit this model"):
            call(wider, adapters)
    with pytest.raises(UsageError, match="cannot write"):
        save(adapters, tmp_path / "nowhere" / "x.safetensors", model)


def test_where_and_rank() -> None:
    model = backbone()
    assert set(lora(model).layers) == {"layers.attention.query", "layers.attention.value"}
    chosen = lora(model, where=lambda path: path == "layers.mlp.up.kernel")
    assert set(chosen.layers) == {"layers.mlp.up"}
    assert json.dumps(chosen.where) == '""'
    shapes = jax.eval_shape(lambda: backbone())
    assert set(lora(shapes, where=r"\.key\.").layers) == {"layers.attention.key"}
    with pytest.raises(UsageError, match="where='atention' chooses no linear layer of this model; there is .*mlp.up"):
        lora(model, where="atention")
    with pytest.raises(UsageError, match="rank must be at least 1, but is 0"):
        lora(model, rank=0)


def test_a_patch_projection_whose_kernel_is_looked_at() -> None:
    model = load_huggingface(BERT.parent / "vit_base")
    adapters = trained(lora(model, rank=2, where="projection"))
    assert set(adapters.layers) == {"tokenizers.image.projection"}
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    run = jax.jit(lambda m: m(image=image)["hidden"])
    np.testing.assert_allclose(run(apply(model, adapters)), run(merge(model, adapters)), atol=1e-5)
    assert np.abs(run(apply(model, adapters)) - run(model)).max() > 0.01
