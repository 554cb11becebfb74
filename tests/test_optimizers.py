"""Every optimizer by name is optax's own, on any mesh, and leaves alone what a step does not touch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from quick import named, quick

from unimodal.errors import UsageError
from unimodal.sharding import make_mesh, path_name, shardings
from unimodal.training.optimizer import OptimizerConfig, apply_updates, averaged, make_optimizer
from unimodal.training.optimizers import OPTIMIZERS
from unimodal.training.parameters import described

SHAPES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {  # name → shape and metadata
    "kernel": ((4, 6), dict(axes=("embed", "mlp"), kind="matrix", contracted=1)),
    "wide": ((128, 136), dict(axes=("embed", "mlp"), kind="matrix", contracted=1)),  # Adafactor factors from 128
    "joined": ((2, 3, 8), dict(axes=("heads", "head_size", "embed"), kind="matrix", contracted=2)),
    "layers": ((2, 4, 6), dict(axes=("embed", "mlp"), kind="matrix", contracted=1)),  # of two layers
    "table": ((5, 4), dict(axes=("vocabulary", "embed"), kind="table")),
    "output": ((4, 5), dict(axes=("embed", "classes"), kind="matrix", contracted=1)),
    "bias": ((2, 3), dict(axes=("heads", "head_size"), kind="vector")),
}
DECAYED = {"kernel", "wide", "joined", "layers[0]", "layers[1]", "table", "output"}
HIDDEN = {"kernel": ((0,), (1,)), "wide": ((0,), (1,)), "joined": ((0, 1), (2,))}
HIDDEN |= {"layers[0]": HIDDEN["kernel"], "layers[1]": HIDDEN["kernel"]}
RATE, DECAY, STEPS = 0.02, 0.3, 3
SETTINGS: dict[str, Any] = dict(learning_rate=RATE, warmup=0, final=1.0, b2=0.95, weight_decay=DECAY, clip=0.0)
NAMES = sorted(OPTIMIZERS)


def parameters(seed: int, names: Any = SHAPES) -> nnx.State:
    rng = np.random.default_rng(seed)
    drawn = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, (shape, _) in SHAPES.items()}
    return nnx.State({name: nnx.Param(drawn[name], **SHAPES[name][1]) for name in names})


def unrolled(tree: Any) -> dict[str, jax.Array]:
    """Plain arrays by name, each layer by itself."""
    found = {}
    for name, value in named(tree).items():
        if name == "layers":
            found |= {f"layers[{i}]": jnp.asarray(layer) for i, layer in enumerate(value)}
        else:
            found[name] = jnp.asarray(value)
    return found


def by_label(label: Callable[[str], str], **transforms: Any) -> Any:
    return optax.partition(transforms, lambda tree: {name: label(name) for name in tree})


def optax_alone(name: str) -> optax.GradientTransformation:
    """The optimizer as one would write it with optax for a whole tree of unrolled layers."""
    decayed = lambda tree: {name: name in DECAYED for name in tree}  # noqa: E731
    vectors = lambda name: "matrix" if name in DECAYED else "vector"  # noqa: E731
    adamw = optax.adamw(RATE, 0.9, 0.95, 1e-8, weight_decay=DECAY, mask=decayed)
    dimensions = lambda tree: {  # noqa: E731
        name: optax.contrib.MuonDimensionNumbers(*HIDDEN[name]) if name in HIDDEN else None for name in tree
    }
    return {
        "adamw": lambda: adamw,
        "sgd": lambda: optax.chain(optax.add_decayed_weights(DECAY, decayed), optax.sgd(RATE, 0.9)),
        "lars": lambda: optax.lars(RATE, DECAY, decayed, trust_ratio_mask=decayed),
        "lamb": lambda: by_label(
            vectors, matrix=optax.lamb(RATE, 0.9, 0.95, 1e-8, weight_decay=DECAY), vector=optax.adam(RATE, 0.9, 0.95)
        ),
        "adafactor": lambda: optax.adafactor(RATE, weight_decay_rate=DECAY * RATE, weight_decay_mask=decayed),
        "lion": lambda: optax.lion(RATE, 0.9, 0.95, weight_decay=DECAY, mask=decayed),
        "muon": lambda: by_label(
            lambda name: "muon" if name in HIDDEN else "adamw",
            muon=optax.contrib.muon(
                RATE, weight_decay=DECAY, muon_weight_dimension_numbers=_hidden_only(dimensions), consistent_rms=0.2
            ),
            adamw=optax.adamw(RATE, 0.9, 0.95, 1e-8, weight_decay=DECAY, mask=_unmasked(decayed)),
        ),
        "schedule_free": lambda: optax.contrib.schedule_free(
            optax.chain(
                optax.scale_by_rms(0.95, 1e-8, eps_in_sqrt=False, bias_correction=True),
                optax.add_decayed_weights(DECAY, decayed),
                optax.scale_by_learning_rate(RATE),
            ),
            RATE,
        ),
    }[name]()


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _hidden_only(dimensions: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda tree: {n: x if _is_masked(x) else dimensions(tree)[n] for n, x in tree.items()}


def _unmasked(decayed: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda tree: {n: x if _is_masked(x) else decayed(tree)[n] for n, x in tree.items()}


def advance(optimizer: optax.GradientTransformation, **options: Any) -> Callable[..., Any]:
    def step(gradients: Any, state: Any, tree: Any) -> Any:
        updates, state = optimizer.update(gradients, state, tree)
        return apply_updates(tree, updates), state

    return quick(step, **options)


@cache
def trained(name: str, lazy: bool = False) -> tuple[Any, Any]:
    """Parameters and state after STEPS steps on one device."""
    optimizer, tree = make_optimizer(OptimizerConfig(name=name, **SETTINGS), STEPS, lazy=lazy), parameters(0)
    state, step = quick(optimizer.init)(tree), advance(optimizer)
    for i in range(STEPS):
        tree, state = step(parameters(i + 1), state, tree)
    return tree, state


@pytest.mark.parametrize("name", NAMES)
def test_the_optimizer_is_optax_alone(name: str) -> None:
    theirs, tree = optax_alone(name), unrolled(parameters(0))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state, update = theirs.init(tree), quick(theirs.update)
        for i in range(STEPS):
            updates, state = update(unrolled(parameters(i + 1)), state, tree)
            tree = optax.apply_updates(tree, updates)
        average = optax.contrib.schedule_free_eval_params(state, tree) if name == "schedule_free" else tree
    ours, our_state = trained(name)
    for part, value in unrolled(ours).items():
        np.testing.assert_allclose(value, tree[part], rtol=1e-5, atol=1e-6, err_msg=part)
        assert np.abs(value - unrolled(parameters(0))[part]).max() > 1e-4, part
    for part, value in unrolled(averaged(our_state, ours)).items():
        np.testing.assert_allclose(value, average[part], rtol=1e-5, atol=1e-6, err_msg=part)


@pytest.mark.parametrize("name", NAMES)
def test_sharded_is_unsharded(name: str) -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    optimizer = make_optimizer(OptimizerConfig(name=name, **SETTINGS), STEPS)
    tree = jax.device_put(parameters(0), shardings(parameters(0), mesh))
    placed = shardings(jax.eval_shape(optimizer.init, tree), mesh)
    state = quick(optimizer.init, out_shardings=placed)(tree)
    step = advance(optimizer, out_shardings=(shardings(tree, mesh), placed))
    for i in range(STEPS):
        tree, state = step(jax.device_put(parameters(i + 1), shardings(tree, mesh)), state, tree)
    whole, whole_state = trained(name)
    for part, value in named(tree).items():
        np.testing.assert_allclose(value, named(whole)[part], rtol=1e-5, atol=2e-6, err_msg=part)
    for part, value in named(state).items():
        np.testing.assert_allclose(value, named(whole_state)[part], rtol=1e-4, atol=1e-5, err_msg=part)
    where = {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state.inner)[0]}
    split = {p.name: p.value for p in described(tree)}
    for part, leaf in where.items():
        own = split[part.split(".")[0]]
        if leaf.shape == own.shape and leaf.size > 1:
            assert leaf.sharding.is_equivalent_to(own.sharding, leaf.ndim), part
    assert not split["kernel"].is_fully_replicated and not split["layers"].is_fully_replicated


@pytest.mark.parametrize("name", NAMES)
def test_who_waits_begins_as_at_step_one(name: str) -> None:
    """Some parameters are touched at steps 2, 5 and 6 only, and end where three steps would have taken them."""
    optimizer = make_optimizer(OptimizerConfig(name=name, **SETTINGS), 7, lazy=True)
    waiting, turns, tree = {"kernel", "layers", "bias"}, {2: 1, 5: 2, 6: 3}, parameters(0)
    state, step = quick(optimizer.init)(tree), advance(optimizer)
    for i in range(7):
        gradients = parameters(turns.get(i, 100 + i))
        if i not in turns:
            for part in waiting:
                gradients[part] = jax.tree.map(jnp.zeros_like, gradients[part])
        before, before_state = tree, state
        tree, state = step(gradients, state, tree)
        if i not in turns:
            for part in waiting:
                np.testing.assert_array_equal(named(tree)[part], named(before)[part])
                same = jax.tree.map(np.array_equal, named(state.inner[part]), named(before_state.inner[part]))
                assert all(same.values()), part
    whole, whole_state = trained(name)
    for part in waiting:
        np.testing.assert_allclose(named(tree)[part], named(whole)[part], rtol=1e-6, atol=1e-7, err_msg=part)
        for key, value in named(whole_state.inner[part]).items():
            np.testing.assert_allclose(named(state.inner[part])[key], value, rtol=1e-5, atol=1e-7, err_msg=key)


def test_adam_after_five_thousand_steps_of_waiting() -> None:
    settings: dict[str, Any] = {**SETTINGS, "b2": 0.999, "weight_decay": 0.0}
    optimizer = make_optimizer(OptimizerConfig(**settings), 6000, lazy=True)
    tree, nothing = parameters(0, ["kernel", "bias"]), jax.tree.map(jnp.zeros_like, parameters(0, ["kernel", "bias"]))
    busy = parameters(1, ["kernel", "bias"])
    busy["kernel"] = nothing["kernel"]

    def wait(_: Any, carry: Any) -> Any:
        tree, state = carry
        updates, state = optimizer.update(busy, state, tree)
        return apply_updates(tree, updates), state

    tree, state = quick(lambda c: jax.lax.fori_loop(0, 5000, wait, c))((tree, optimizer.init(tree)))
    np.testing.assert_array_equal(named(tree)["kernel"], named(parameters(0))["kernel"])
    theirs, plain = optax.adam(RATE, 0.9, 0.999), jnp.asarray(named(parameters(0))["kernel"])
    moments, update = theirs.init(plain), quick(optimizer.update)
    for i in range(4):
        gradients = parameters(i + 2, ["kernel", "bias"])
        updates, state = update(gradients, state, tree)
        with jax.numpy_dtype_promotion("standard"):
            expected, moments = theirs.update(gradients["kernel"].get_value(), moments)
        np.testing.assert_allclose(named(updates)["kernel"], expected, rtol=2e-6, atol=1e-9)
        if i == 0:
            np.testing.assert_allclose(np.abs(named(updates)["kernel"]), RATE, rtol=1e-5)
        tree = apply_updates(tree, updates)
    assert int(state.inner["kernel"][0].count) == 4 and int(state.inner["bias"][0].count) == 5004


def test_the_learning_rate_follows_the_run_not_the_turns() -> None:
    config = OptimizerConfig(**{**SETTINGS, "warmup": 10})
    optimizer, tree = make_optimizer(config, 20, lazy=True), parameters(0, ["bias"])
    state = optimizer.init(tree)._replace(step=jnp.int32(5))
    updates, _ = quick(optimizer.update)(parameters(1, ["bias"]), state, tree)
    np.testing.assert_allclose(np.abs(named(updates)["bias"]), RATE / 2, rtol=1e-5)


# --- learning rates by part ----------------------------------------------------------------------------------------


def rates(config: OptimizerConfig, names: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The step that signs of gradients alone make: the learning rate of each parameter, or of each layer of it."""
    nested: dict[str, Any] = {}
    for name, shape in names.items():
        *path, last = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(int(part) if part.isdigit() else part, {})
        place[last] = nnx.Param(jnp.ones(shape, jnp.float32), axes=("embed",), kind="vector")
    tree = nnx.State(nested)
    optimizer = make_optimizer(config, 3)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, tree), optimizer.init(tree), tree)
    assert all(np.ptp(u, axis=-1).max() == 0 for u in named(updates).values())
    return {name: -u[..., 0] / RATE for name, u in named(updates).items()}


def test_layer_decay_is_beits() -> None:
    """Bao 2022: with n layers the embedding has decay^(n+1), layer i (from 1) decay^(n+1-i), the head 1."""
    names: dict[str, tuple[int, ...]] = {
        "tokenizers.text.table": (4,),
        "tokenizers.image.table": (4,),
        "backbones.text.layers.mlp": (3, 4),  # stacked
        "backbones.text.final_norm": (4,),
        "backbones.image.layers.0.mlp": (4,),
        "backbones.image.layers.1.mlp": (4,),
        "heads.vit": (4,),
    }
    found = rates(OptimizerConfig(**SETTINGS, name="lion", layer_decay=0.5), names)
    expected = {
        "tokenizers.text.table": 0.5**4,
        "tokenizers.image.table": 0.5**3,
        "backbones.text.layers.mlp": [0.5**3, 0.5**2, 0.5],
        "backbones.text.final_norm": 1,
        "backbones.image.layers.0.mlp": 0.5**2,
        "backbones.image.layers.1.mlp": 0.5,
        "heads.vit": 1,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_learning_rates_by_name() -> None:
    names: dict[str, tuple[int, ...]] = {n: (4,) for n in ("a.kernel", "a.bias", "ab.kernel", "b.bias")}
    factors = ("a=0.5", r".*\.bias=4")
    found = rates(OptimizerConfig(**SETTINGS, name="lion", learning_rate_factors=factors), names)
    expected = {"a.kernel": 0.5, "a.bias": 0.5, "ab.kernel": 1, "b.bias": 4}  # the first that matches, to a dot
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    with pytest.raises(UsageError, match=r"learning_rate_factors='c=2' matches no parameter's name, such as a.bias"):
        rates(OptimizerConfig(learning_rate_factors=("c=2",)), names)
    with pytest.raises(UsageError, match="layer_decay needs a model with backbones"):
        rates(OptimizerConfig(layer_decay=0.5), names)


@pytest.mark.parametrize("name", ["adamw", "lamb", "muon", "schedule_free"])
def test_without_an_epsilon_what_has_no_gradient_would_be_nan(name: str) -> None:
    OptimizerConfig(name="sgd", epsilon=0.0)  # which divides by nothing
    with pytest.raises(UsageError, match=f"optimizer.epsilon must be above 0 for {name}, such as 1e-8"):
        OptimizerConfig(name=name, epsilon=0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(name="adam"), "optimizer.name='adam' is not known; did you mean adamw?"),
        (dict(name="sophia"), "optimizer.name='sophia' is not known; there is adafactor, adamw"),
        (dict(name="schedule_free", b1=0.0), "optimizer.b1 must be above 0"),
        (dict(momentum=1.0), "optimizer.momentum must be at least 0 and below 1, but is 1.0"),
        (dict(layer_decay=0.0), "optimizer.layer_decay must be above 0"),
        (dict(layer_decay=1.5), "optimizer.layer_decay must be above 0 and at most 1"),
        (dict(master_weights=True, stochastic_rounding=True), "choose one of them"),
        *(
            (dict(learning_rate_factors=(entry,)), f"learning_rate_factors={entry!r} must be PATTERN=FACTOR")
            for entry in ("a", "a=", "=2", "a=0", "a=-1", "a=nan", "(=2", "a=x")
        ),
    ],
)
def test_wrong_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        OptimizerConfig(**fields)
