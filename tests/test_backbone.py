"""The backbone: every option against a plain numpy reading of it, scan and remat, dtypes, what can be captured."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import named, quick
from scipy.special import erf, expit

from unimodal import Backbone, BackboneConfig, Span, Tokens, UsageError
from unimodal.backbone import MLP_ACTIVATIONS, relative_bucket, rope_table, rotate
from unimodal.layers import dropout
from unimodal.remat import REMAT
from unimodal.sharding import make_mesh, path_name
from unimodal.tokens import tokens

SMALL = dict(width=8, depth=2, heads=4, mlp_width=12)
SEGMENT = np.asarray([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]], np.int32)
LAYOUT = (Span(2), Span(4, True))
RICH = dict(norm="rms", activation="swiglu", kv_heads=2, qk_norm=True, rope_theta=100.0, layer_scale=0.3)
rng = np.random.default_rng(0)


def given(width=8, layout=LAYOUT, segment=SEGMENT, shift=0) -> Tokens:
    x = np.random.default_rng(1).standard_normal((*SEGMENT.shape, width)).astype(np.float32)
    position = np.broadcast_to(np.arange(6, dtype=np.int32) + shift, SEGMENT.shape)
    return Tokens(jnp.asarray(x), jnp.asarray(position), None if segment is None else jnp.asarray(segment), layout)


def lively(*, seed=2, **options) -> Backbone:
    """A backbone whose biases and scales are not the zeros and ones they start as, filled in without compiling."""
    config = BackboneConfig(**SMALL | options)
    noise = np.random.default_rng(seed)

    def fill(path, leaf):
        values = 0.3 * noise.standard_normal(leaf.shape).astype(np.float32)
        return jnp.asarray(values + (1 if path_name(path).endswith("norm.scale") else 0), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(lambda: Backbone(config, rngs=nnx.Rngs(0))))


def kept(x: jax.Array, **options) -> list[jax.ShapeDtypeStruct]:
    """What the gradient of a backbone keeps of its forward pass: one array, or a stack of one for each layer, per entry."""
    structure, parameters = nnx.split(Backbone(BackboneConfig(**SMALL | options), rngs=nnx.Rngs(0)))

    def forward(parameters, x):
        return nnx.merge(structure, parameters)(tokens(x))[0]

    _, backward = jax.eval_shape(lambda *given: jax.vjp(forward, *given), parameters, x)
    return [leaf for leaf in jax.tree.leaves(backward) if x.shape[1] in leaf.shape]


def layer_by_layer(tree):
    """The arrays of a scanned backbone (or of its gradients) under the names that an unrolled one has."""
    found = {}
    for name, value in named(tree).items():
        if name.startswith("layers.") and not name.split(".")[1].isdigit():
            found |= {name.replace("layers", f"layers.{i}", 1): row for i, row in enumerate(value)}
        else:
            found[name] = value
    return found


# ---- Every option, read plainly ------------------------------------------------------------------------------------

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * expit(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * expit(x),
}
GATED = {"swiglu": "silu", "geglu": "gelu_tanh", "geglu_erf": "gelu"}


def plainly(backbone: Backbone, made: Tokens) -> np.ndarray:
    """The backbone in double precision, one sequence, layer, head and query at a time."""
    c, w = backbone.config, {k: v.astype(np.float64) for k, v in layer_by_layer(backbone).items()}
    return np.stack([_one(c, w, np.asarray(made.x[b], np.float64), made, b) for b in range(made.x.shape[0])])


def _one(c: BackboneConfig, w, x, made: Tokens, b: int):
    def norm(y, name):
        if c.norm == "layer":
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + c.norm_epsilon)
        else:
            y = y / np.sqrt((y**2).mean(-1, keepdims=True) + c.norm_epsilon)
        return y * w[f"{name}.scale"] + w.get(f"{name}.bias", 0)

    def dense(y, name, spec):
        return np.einsum(spec, y, w[f"{name}.kernel"]) + w.get(f"{name}.bias", 0)

    for i in range(c.depth):
        layer = f"layers.{i}"
        branches = ((_attend, "attention", "attention_norm"), (_perceive, "mlp", "mlp_norm"))
        for branch, part, norm_name in branches:
            bare = i == 0 and part == "attention" and not c.first_attention_norm
            y = norm(x, f"{layer}.{norm_name}") if c.norm_position != "post" and not bare else x
            y = branch(c, f"{layer}.{part}", y, dense, norm, made, b)
            y = norm(y, f"{layer}.{part}_post_norm") if c.norm_position == "sandwich" else y
            x = x + y * (1 if c.layer_scale is None else w[f"{layer}.{part}_scale"])
            x = norm(x, f"{layer}.{norm_name}") if c.norm_position == "post" else x
    return norm(x, "final_norm") if c.final_norm else x


def _perceive(c, name, y, dense, norm, made, b):
    up = dense(y, f"{name}.up", "td,dm->tm")
    if c.activation in GATED:
        inner = ACTIVATIONS[GATED[c.activation]](dense(y, f"{name}.gate", "td,dm->tm")) * up
    else:
        inner = ACTIVATIONS[c.activation](up)
    return dense(inner, f"{name}.down", "tm,md->td")


def _attend(c, name, y, dense, norm, made, b):
    q, k, v = (dense(y, f"{name}.{part}", "td,dhk->thk") for part in ("query", "key", "value"))
    if c.qk_norm:
        q, k = norm(q, f"{name}.query_norm"), norm(k, f"{name}.key_norm")
    layer = int(name.split(".")[1])
    narrow = c.window is not None and (c.window_layers is None or layer in c.window_layers)
    if c.rope_theta is not None and (c.rope_layers is None or layer in c.rope_layers):
        theta = c.window_rope_theta if narrow and c.window_rope_theta is not None else c.rope_theta
        q, k = (_turned(a, np.asarray(made.position[b]), theta) for a in (q, k))
    scale = 1 / np.sqrt(c.K) if c.attention_scale is None else c.attention_scale
    segment = np.ones(len(y)) if made.segment is None else np.asarray(made.segment[b])
    first = made.layout[0].length  # LAYOUT: a bidirectional span, then a causal one
    result = np.zeros_like(q)
    for t, h in np.ndindex(len(y), c.heads):
        seen = [s for s in range(len(y)) if (s < first or s <= t and t >= first) and segment[s] == segment[t] != 0]
        seen = [s for s in seen if not narrow or abs(s - t) < c.window]
        if seen:
            group = h // (c.heads // c.G)
            logit = k[seen, group] @ q[t, h] * scale
            if c.attention_soft_cap is not None:
                logit = c.attention_soft_cap * np.tanh(logit / c.attention_soft_cap)
            score = np.exp(logit)
            result[t, h] = score / score.sum() @ v[seen, group]
    return dense(result, f"{name}.output", "thk,hkd->td")


def _turned(a, position, theta):
    """Each pair (i, i+K/2) as a complex number, turned by position · theta^(-2i/K)."""
    half = a.shape[-1] // 2
    turn = np.exp(1j * position[:, None, None] * theta ** (-np.arange(half) / half))
    turned = (a[..., :half] + 1j * a[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


# A window in some layers, which rotate otherwise, and one layer that does not rotate at all.
KINDS = dict(depth=3, window=2, window_layers=(0, 2), rope_theta=100.0, window_rope_theta=5.0, rope_layers=(1, 2))
OPTIONS = {
    "as it comes": {},
    "post-norm": dict(norm_position="post", final_norm=False),
    "rms": dict(norm="rms", norm_epsilon=0.1),
    "norms without bias, epsilon": dict(norm_bias=False, norm_epsilon=0.1),
    "no biases": dict(qkv_bias=False, output_bias=False, mlp_bias=False),
    "head sizes": dict(heads=2, head_size=6, kv_heads=1),
    "qk_norm": dict(qk_norm=True),
    "everything": RICH,
    "sandwich": dict(norm_position="sandwich", first_attention_norm=False, layer_scale=0.3),
    "logits bent": dict(attention_scale=0.9, attention_soft_cap=0.4),
    "kinds of layers": KINDS,
    "kinds of layers, unrolled": KINDS | dict(scan=False),
    "rotation in some layers": dict(rope_theta=100.0, rope_layers=(1,), window=2, window_layers=(1,)),
    **{name: dict(activation=name) for name in MLP_ACTIVATIONS if name not in ("gelu", "swiglu")},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option_is_what_it_says_and_can_be_trained(name):
    backbone, made = lively(**OPTIONS[name]), given()
    probe = jnp.asarray(rng.standard_normal(made.x.shape, dtype=np.float32))

    def loss(backbone):
        hidden, _ = backbone(made)
        return (hidden * probe).sum(), hidden

    (_, hidden), grads = quick(jax.value_and_grad(loss, has_aux=True))(backbone)
    np.testing.assert_allclose(hidden, plainly(backbone, made), rtol=2e-5, atol=2e-5)
    for key, gradient in layer_by_layer(grads).items():
        assert np.isfinite(gradient).all(), key
        if key.startswith("layers.0.attention_norm") and not backbone.config.first_attention_norm:
            assert not gradient.any(), key
            continue
        # The last bias of the keys shifts all logits of a query alike, unless they are rotated after it.
        assert np.abs(gradient).max() > 1e-6 or key.endswith(("attention.key.bias", "attention.key_norm.bias")), key


def test_activations_are_those_of_the_list():
    """An activation that nobody read plainly would slip through the test above."""
    assert set(MLP_ACTIVATIONS) == set(ACTIVATIONS) | set(GATED)


def test_unused_options_hold_no_parameters():
    def parts(**options):
        config = BackboneConfig(**SMALL | options)
        shapes = jax.eval_shape(lambda: Backbone(config, rngs=nnx.Rngs(0)))
        return {path_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]}

    plain = parts()
    qkv = {f"layers.attention.{part}.bias" for part in ("query", "key", "value")}
    mlp = {"layers.mlp.up.bias", "layers.mlp.down.bias"}
    norms = {"layers.attention_norm.bias", "layers.mlp_norm.bias", "final_norm.bias"}
    assert plain - parts(qkv_bias=False) == qkv
    assert plain - parts(output_bias=False) == {"layers.attention.output.bias"}
    assert plain - parts(mlp_bias=False) == mlp
    assert plain - parts(norm_bias=False) == plain - parts(norm="rms") == norms
    assert plain - parts(final_norm=False) == {"final_norm.scale", "final_norm.bias"}
    after = {f"layers.{part}_post_norm.{leaf}" for part in ("attention", "mlp") for leaf in ("scale", "bias")}
    assert parts(norm_position="sandwich") - plain == after
    assert parts(layer_scale=0.1) - plain == {"layers.attention_scale", "layers.mlp_scale"}
    assert parts(activation="geglu") - plain == {"layers.mlp.gate.kernel", "layers.mlp.gate.bias"}
    added = {f"layers.attention.{part}_norm.{leaf}" for part in ("query", "key") for leaf in ("scale", "bias")}
    assert parts(qk_norm=True) - plain == added
    assert parts(dropout=0.1, stochastic_depth=0.1, rope_theta=10.0, kv_heads=2, remat="full") == plain
    some: dict[str, Any] = dict(
        window=2, window_layers=(0,), rope_layers=(0,), attention_soft_cap=1.0, attention_scale=1.0
    )
    assert parts(rope_theta=10.0, first_attention_norm=False, shared_layers=True, **some) == plain


def test_layer_scale_starts_at_its_value():
    config = BackboneConfig(**SMALL, layer_scale=0.25)
    backbone = quick(lambda: Backbone(config, rngs=nnx.Rngs(0)))()
    np.testing.assert_array_equal(backbone.layers.mlp_scale.get_value(), np.full((2, 8), 0.25))


# ---- Positions -----------------------------------------------------------------------------------------------------


def test_rope_sees_only_differences_of_position():
    backbone = lively(rope_theta=100.0)
    run = quick(lambda made: backbone(made)[0])
    here = run(given())
    for shift in (1000, 10**6):
        np.testing.assert_allclose(run(given(shift=shift)), here, rtol=1e-5, atol=1e-5)
    made = given()
    stretched = run(dataclasses.replace(made, position=made.position * 2))
    assert np.abs(stretched - here).max() > 0.01


@pytest.mark.parametrize("theta", [100.0, 1e4, 5e5])
@pytest.mark.parametrize("scaling", [None, (8.0,), (8.0, 1.0, 4.0, 8192.0)])
def test_angles_are_exact_at_any_position(theta, scaling):
    place = np.array([[0, 1, 7, 1000, 131_071, 10**6, 2**31 - 1, -5]], np.int32)
    frequency = theta ** (-np.arange(0, 64, 2) / 64)
    if scaling is not None:  # as Llama 3 has it: slow ones divided, fast ones kept, in between a blend
        turns = scaling[3] * frequency / (2 * np.pi) if len(scaling) > 1 else 0 * frequency
        kept = np.clip((turns - 1) / (4 - 1), 0, 1)
        frequency = frequency * (kept + (1 - kept) / 8)
    angle = place[0].astype(np.float64)[:, None] * frequency
    cos, sin = rope_table(jnp.asarray(place), 64, theta, scaling)
    np.testing.assert_allclose(cos[0, :, 0], np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(sin[0, :, 0], np.sin(angle), atol=1e-6)


def test_rotation_keeps_lengths_and_the_dtype():
    x = jnp.asarray(rng.standard_normal((2, 6, 3, 8)), jnp.bfloat16)
    turned = rotate(x, rope_table(given().position, 8, 100.0))
    assert turned.dtype == jnp.bfloat16
    lengths = [np.linalg.norm(np.asarray(a, np.float32), axis=-1) for a in (x, turned)]
    np.testing.assert_allclose(*lengths, rtol=0.02)


def test_relative_buckets_by_hand():
    """Of 32 buckets up to distance 128: eight single distances a side, then eight that double every second one."""
    distance = np.asarray([0, -1, -7, -8, -11, -12, -15, -16, -63, -64, -127, -128, -900])
    found = relative_bucket(distance, 32, 128)
    assert found.tolist() == [0, 1, 7, 8, 8, 9, 9, 10, 13, 14, 15, 15, 15]
    assert relative_bucket(-distance[1:], 32, 128).tolist() == [16 + bucket for bucket in found[1:].tolist()]


def test_a_learned_bias_by_distance():
    """Read plainly: logits plus the table's row of the pair's bucket; one table for all layers, none for those without."""
    backbone, made = lively(relative_buckets=4, relative_distance=6, rope_theta=100.0, kv_heads=2), given()
    table = np.asarray(named(backbone)["relative.table"], np.float64)
    assert table.shape == (4, 4) and "relative.table" not in named(lively())
    bias = table[relative_bucket(np.arange(6)[None] - np.arange(6)[:, None], 4, 6)]  # [query,key,H]
    _, out = quick(lambda b: b(made, capture=("attention",)))(backbone)
    _, bare = quick(lambda b: b(made, capture=("attention",)))(_unbiased(backbone))
    # In the first layer both see the same, so that their weights differ by the bias alone.
    ours, plain = np.asarray(out["attention"])[0], np.asarray(bare["attention"])[0]
    wanted = plain * np.exp(bias.transpose(2, 0, 1))[None]
    wanted = wanted / np.maximum(wanted.sum(-1, keepdims=True), 1e-30)
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-6)

    def loss(backbone):
        return jnp.sin(backbone(made)[0]).sum()

    gradient = named(quick(jax.grad(loss))(backbone))["relative.table"]
    shifted = []
    for step in (1e-2, -1e-2):
        other = nnx.clone(backbone)
        other.relative.table.set_value(backbone.relative.table.get_value().at[1, 2].add(step))
        shifted.append(float(loss(other)))
    assert (shifted[0] - shifted[1]) / 2e-2 == pytest.approx(float(gradient[1, 2]), rel=0.02, abs=1e-3)
    for there_and_back in (backbone.unstacked(), backbone.unstacked().stacked()):
        np.testing.assert_array_equal(named(there_and_back)["relative.table"], table)
    with pytest.raises(UsageError, match="relative_buckets has no cache"):
        backbone.prefill(made)


def _unbiased(backbone: Backbone) -> Backbone:
    other = nnx.clone(backbone)
    other.relative.table.set_value(jnp.zeros_like(backbone.relative.table.get_value()))
    return other


def test_without_rope_positions_do_not_matter():
    backbone = lively()
    run = quick(lambda made: backbone(made)[0])
    np.testing.assert_array_equal(run(given()), run(given(shift=7)))


# ---- What must not matter ------------------------------------------------------------------------------------------


def test_no_gradient_from_future_tokens_other_segments_or_padding():
    """Through two layers: token t's hidden state depends on exactly the tokens that t may see, and on itself."""
    backbone, made = lively(**RICH), given()
    jacobian = quick(jax.jacrev(lambda x: backbone(made.with_x(x))[0][..., :3].sum(axis=2)))(made.x)
    depends = np.abs(np.asarray(jacobian)).max(axis=-1) > 0  # [B,T,B,S]
    for b, t, other, s in np.ndindex(2, 6, 2, 6):
        may = b == other and (s == t or ((s < 2 or s <= t and t >= 2) and SEGMENT[b, s] == SEGMENT[b, t] != 0))
        assert depends[b, t, other, s] == may, (b, t, other, s)


# ---- Randomness ----------------------------------------------------------------------------------------------------


def test_dropout_is_unbiased_and_off_without_a_key():
    x = jnp.asarray(rng.standard_normal((400, 5, 8), dtype=np.float32)) + 2.0
    assert dropout(x, 0.3, None) is x and dropout(x, 0.0, jax.random.key(0)) is x
    for per_example in (False, True):
        y = np.asarray(dropout(x, 0.3, jax.random.key(0), per_example=per_example))
        kept = y != 0
        np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / 0.7, rtol=1e-6)
        np.testing.assert_allclose(kept.mean(), 0.7, atol=0.08 if per_example else 0.02)
        assert per_example == (kept.all(axis=(1, 2)) | ~kept.any(axis=(1, 2))).all()


def test_dropout_in_bfloat16_divides_by_the_rate_itself():
    x = jnp.asarray(rng.standard_normal(5000), jnp.bfloat16)
    y = np.asarray(dropout(x, 0.1, jax.random.key(0)))
    expected = (np.asarray(x, np.float32) / np.float32(0.9)).astype(y.dtype)
    np.testing.assert_array_equal(y[y != 0], expected[y != 0])


def test_dropout_on_a_residual_branch():
    """With a silent MLP, one layer's output is x + dropout(attention)."""
    backbone = lively(depth=1, dropout=0.5, final_norm=False, scan=False)
    down = backbone.layers[0].mlp.down
    for parameter in (down.kernel, down.bias):
        parameter.set_value(jnp.zeros_like(parameter.get_value()))
    made = tokens(jnp.asarray(rng.standard_normal((16, 6, 8), dtype=np.float32)))
    run = quick(lambda made, key=None: backbone(made, key=key)[0] - made.x)
    plain, dropped = np.asarray(run(made)), np.asarray(run(made, jax.random.key(0)))
    kept = np.abs(dropped) > 1e-5
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(kept.mean(), 0.5, atol=0.06)
    np.testing.assert_array_equal(run(made, jax.random.key(0)), dropped)
    assert (np.asarray(run(made, jax.random.key(1))) != dropped).any()


@pytest.mark.parametrize("scan", [True, False])
def test_stochastic_depth_grows_linearly(scan):
    """Both branches of layer l are skipped, and it changes nothing, with the square of its rate."""
    depth, rate = 5, 0.8
    backbone = lively(depth=depth, stochastic_depth=rate, final_norm=False, scan=scan)
    made = tokens(jnp.asarray(rng.standard_normal((1500, 1, 8), dtype=np.float32)))
    run = quick(lambda made, key=None: backbone(made, key=key, capture=("hidden",))[1]["hidden"])
    for key, rates in ((None, np.zeros(depth)), (jax.random.key(0), np.linspace(0, rate, depth))):
        hidden = np.asarray(run(made, key))
        before = np.concatenate([np.asarray(made.x)[None], hidden[:-1]])
        skipped = (hidden == before).all(axis=(2, 3)).mean(axis=1)
        np.testing.assert_allclose(skipped, rates**2, atol=0.05)


# ---- Scan, remat ---------------------------------------------------------------------------------------------------


def value_and_grads(backbone, made, key=None):
    def loss(backbone, x, key):
        hidden, _ = backbone(made.with_x(x), key=key)
        return jnp.square(hidden).sum(axis=-1).mean()

    value, grads = quick(jax.value_and_grad(loss, argnums=(0, 1)))(backbone, made.x, key)
    return {"value": np.asarray(value), "x": np.asarray(grads[1]), **layer_by_layer(grads[0])}


def test_scanned_and_unrolled_are_the_same():
    """Also with dropout: a layer draws the same numbers either way."""
    options = RICH | dict(depth=3, dropout=0.2, stochastic_depth=0.2)
    scanned, made = lively(**options), given()
    unrolled = scanned.unstacked()
    assert not unrolled.config.scan and len(unrolled.layers) == 3
    a, b = (value_and_grads(model, made, jax.random.key(0)) for model in (scanned, unrolled))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(
            b[name], a[name], rtol=1e-6, atol=1e-6 * max(1.0, np.abs(a[name]).max()), err_msg=name
        )


def test_stacked_and_unstacked_are_inverse():
    scanned = lively(**RICH)
    unrolled = scanned.unstacked()
    assert scanned.stacked() is scanned and unrolled.unstacked() is unrolled
    for there_and_back, original in ((unrolled.stacked(), scanned), (unrolled.stacked().unstacked(), unrolled)):
        assert jax.tree.structure(there_and_back) == jax.tree.structure(original)
        assert there_and_back.config == original.config
        for name, value in named(original).items():
            np.testing.assert_array_equal(named(there_and_back)[name], value, err_msg=name)
    kernel = scanned.layers.mlp.up.kernel.get_value()
    np.testing.assert_array_equal(unrolled.layers[1].mlp.up.kernel.get_value(), kernel[1])


def test_scanned_and_unrolled_start_from_the_same_weights():
    configs = [BackboneConfig(**SMALL, scan=scan) for scan in (True, False)]
    a, b = quick(lambda: [Backbone(config, rngs=nnx.Rngs(3)) for config in configs])()
    for name, value in named(b).items():
        np.testing.assert_allclose(layer_by_layer(a)[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
    first, second = (named(layer)["mlp.up.kernel"] for layer in b.layers)
    assert (first != second).all()


@pytest.mark.parametrize("scan", [True, False])
def test_shared_layers_are_one_layer_used_over_and_over(scan):
    """As a deep backbone whose layers are copies, and the gradient is the sum over the copies."""
    shared = lively(depth=3, shared_layers=True)
    deep = lively(depth=3)
    deep.layers = jax.tree.map(lambda leaf: jnp.repeat(leaf, 3, axis=0), shared.layers)
    deep.final_norm = shared.final_norm
    shared = shared if scan else shared.unstacked()

    def loss(backbone, made):
        hidden, captured = backbone(made, capture=("hidden",))
        return (jnp.sin(hidden)).sum(), (hidden, captured["hidden"])

    (_, ours), gradients = quick(jax.value_and_grad(loss, has_aux=True))(shared, given())
    (_, theirs), wanted = quick(jax.value_and_grad(loss, has_aux=True))(deep, given())
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    wanted = {name: value.sum(0, keepdims=name.startswith("layers")) for name, value in named(wanted).items()}
    gradients = gradients if scan else gradients.stacked()
    assert {name: len(value) for name, value in named(gradients.layers).items()} == dict.fromkeys(named(deep.layers), 1)
    for name, value in named(gradients).items():
        if name.startswith("layers"):
            np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_every_remat_policy_gives_the_same_gradients():
    assert set(REMAT) == {"none", "light", "dots", "full"}
    results = {}
    for remat, scan in (("none", True), ("light", True), ("full", True), ("dots", True), ("full", False)):
        backbone = lively(**RICH, remat=remat, dropout=0.1)
        backbone = backbone if scan else backbone.unstacked()
        results[remat, scan] = value_and_grads(backbone, given(), jax.random.key(0))
    kept = results.pop(("none", True))
    for policy, result in results.items():
        for name, value in kept.items():
            np.testing.assert_allclose(result[name], value, rtol=1e-5, atol=1e-6, err_msg=f"{policy} {name}")


def test_remat_keeps_less():
    def held(remat):
        return sum(leaf.size for leaf in kept(jnp.ones((2, 6, 8)), remat=remat))

    assert held("full") < held("light") <= held("dots") < held("none")


@pytest.mark.parametrize("activation", [name for name in MLP_ACTIVATIONS if name != "relu"])
def test_norms_and_activations_keep_what_went_in_alone(activation):
    """Of the MLP: what the activation reads and what the last product reads. As wide as the model: what norms and products read.
    And nothing in float32, in which norms and activations compute, but what attention needs."""
    leaves = kept(jnp.ones((2, 6, 8), jnp.bfloat16), activation=activation, dtype="bfloat16")
    shapes = [(leaf.shape[1:], str(leaf.dtype)) for leaf in leaves]
    wide = [dtype for shape, dtype in shapes if shape == (2, 6, 12)]
    assert wide == ["bfloat16"] * (3 if MLP_ACTIVATIONS[activation][1] else 2)
    assert [dtype for shape, dtype in shapes if shape == (2, 6, 8)] == ["bfloat16"] * 4
    assert not [shape for shape, dtype in shapes if dtype == "float32" and shape[-1] not in (1, 6)]


# ---- Dtypes --------------------------------------------------------------------------------------------------------


def test_bfloat16_compute_keeps_float32_parameters():
    options = RICH | dict(norm="layer", dropout=0.1, stochastic_depth=0.1)
    exact, half = lively(**options), lively(**options, dtype="bfloat16")
    made = given()

    def loss(backbone, key):
        hidden, _ = backbone(made, key=key)
        return hidden.astype(jnp.float32).mean(), hidden

    run = quick(jax.grad(loss, has_aux=True))
    grads, hidden = run(half, None)
    assert hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((half, grads))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(hidden.astype(jnp.float32), run(exact, None)[1], atol=0.1)
    assert np.isfinite(run(half, jax.random.key(0))[1].astype(jnp.float32)).all()


def test_parameters_may_be_stored_in_bfloat16():
    config = BackboneConfig(**SMALL | RICH, param_dtype="bfloat16")
    backbone = jax.eval_shape(lambda: Backbone(config, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(backbone)} == {jnp.dtype("bfloat16")}
    assert jax.eval_shape(lambda backbone: backbone(given())[0], backbone).dtype == jnp.float32


# ---- Capture, bad configs ------------------------------------------------------------------------------------------


SPREAD: dict[str, Any] = dict(window=2, window_layers=(1,), rope_theta=100.0, rope_layers=(0,), kv_heads=2)


@pytest.mark.parametrize("attention", ["xla", "blockwise"])
def test_kinds_of_layers_on_a_mesh(attention):
    """Values and gradients as on one device, with the layers' branches taken inside a scan; `blockwise` in a ring."""
    backbone = lively(**SPREAD, attention_soft_cap=0.5, norm_position="sandwich", remat="full")
    made = given(layout=(Span(6, True),))

    def loss(backbone, x):
        hidden, _ = backbone(made.with_x(x))
        return jnp.sin(hidden).sum()

    step = jax.value_and_grad(loss, argnums=(0, 1))
    wanted_loss, wanted = quick(step)(backbone, made.x)
    spread = dataclasses.replace(backbone.config, attention=attention)
    other = jax.eval_shape(lambda: Backbone(spread, rngs=nnx.Rngs(0)))
    other = jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(backbone))
    with jax.set_mesh(make_mesh(data=1, fsdp=2, tensor=2, sequence=2)):
        found_loss, found = quick(step)(other, made.x)
    np.testing.assert_allclose(found_loss, wanted_loss, rtol=1e-5)
    for (name, theirs), ours in zip(named(wanted).items(), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "options", [dict(), dict(scan=False, remat="full"), SPREAD], ids=["scanned", "unrolled", "kinds"]
)
def test_capture(options):
    backbone, made = lively(**RICH | options), given()
    run = quick(lambda made: backbone(made, capture=("hidden", "attention")))
    plain, nothing = quick(lambda made: backbone(made))(made)
    final, out = run(made)
    assert nothing == {} and set(out) == {"hidden", "attention"}
    assert out["hidden"].shape == (2, 2, 6, 8) and out["attention"].shape == (2, 2, 4, 6, 6)
    np.testing.assert_allclose(final, plain, rtol=1e-5, atol=1e-6)
    assert backbone.final_norm is not None
    np.testing.assert_allclose(backbone.final_norm(out["hidden"][-1]), final, rtol=1e-5, atol=1e-6)
    attention = np.asarray(out["attention"])
    real = np.broadcast_to((SEGMENT != 0)[None, :, None], attention.shape[:-1])
    np.testing.assert_allclose(attention.sum(axis=-1), real, rtol=1e-5)  # padded queries attend to nothing
    assert (attention >= 0).all() and not attention[..., 0, 2:].any()


def test_unknown_capture():
    with pytest.raises(ValueError, match=r"^capture \['logits'\] is not among 'hidden', 'attention'$"):
        lively()(given(), capture=("logits", "hidden"))


BAD = {
    "backbone.depth must be at least 1, but is 0": dict(depth=0),
    "backbone.kv_heads must be at least 1, but is 0": dict(kv_heads=0),
    "backbone.mlp_width must be at least 1, but is -1": dict(mlp_width=-1),
    "backbone.width=9 is not divisible by heads=4; or set head_size": dict(width=9),
    "backbone.heads=4 is not divisible by kv_heads=3": dict(kv_heads=3),
    "backbone.rope_theta rotates pairs, so the head size must be even, but is 3": dict(head_size=3, rope_theta=1e4),
    "backbone.dropout must be at least 0 and below 1, but is 1.0": dict(dropout=1.0),
    "backbone.stochastic_depth must be at least 0 and below 1, but is -0.1": dict(stochastic_depth=-0.1),
    "backbone.norm_position='both' is not one of pre, post, sandwich": dict(norm_position="both"),
    "backbone.norm='batch' is not one of layer, rms": dict(norm="batch"),
    "backbone.remat='lite' is not one of none, light, dots, full; did you mean light?": dict(remat="lite"),
    "backbone.quantization='int4' is not one of none, int8, float8; did you mean int8?": dict(quantization="int4"),
    "backbone.attention='magic' is not one of auto, xla, lean, blockwise, cudnn, splash, ring, ulysses": dict(
        attention="magic"
    ),
    "backbone.dtype='float64' is not one of float32, bfloat16, float16": dict(dtype="float64"),
    "backbone.activation='swish' is not one of gelu, gelu_tanh, quick_gelu, relu, silu, swiglu, geglu, geglu_erf": dict(
        activation="swish"
    ),
    "backbone.window_layers names layer 2, but there are 0 to 1": dict(window=2, window_layers=(0, 2)),
    "backbone.rope_layers names layer -1, but there are 0 to 1": dict(rope_theta=1.0, rope_layers=(-1,)),
    "backbone.window_layers means nothing without window: set both, or neither": dict(window_layers=(0,)),
    "backbone.window_rope_theta means nothing without window: set both, or neither": dict(window_rope_theta=1.0),
    "backbone.window_rope_theta means nothing without rope_theta: set both, or neither": dict(
        window=2, window_rope_theta=1.0
    ),
    "backbone.rope_layers means nothing without rope_theta: set both, or neither": dict(rope_layers=(0,)),
    "backbone.first_attention_norm=False leaves out a norm that norm_position='post' has not": dict(
        first_attention_norm=False, norm_position="post"
    ),
    "backbone.relative_buckets must be a multiple of 4 below relative_distance=128, but is 6": dict(relative_buckets=6),
    "backbone.attention='ring' has no relative_buckets: choose auto, xla or lean": dict(
        relative_buckets=8, attention="ring"
    ),
    "backbone.attention_soft_cap must be above 0, but is 0.0": dict(attention_soft_cap=0.0),
    "backbone.attention_scale must be above 0, but is -1.0": dict(attention_scale=-1.0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_config_is_one_line(message):
    with pytest.raises(UsageError) as error:
        BackboneConfig(**SMALL | BAD[message])
    assert str(error.value) == message
