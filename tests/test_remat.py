"""What `remat=light` keeps and computes again: names, kernels, products, gradients, memory."""

from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick import quick

from unimodal import Backbone, BackboneConfig, Span
from unimodal.attention import attention
from unimodal.kernels.splash import splash
from unimodal.remat import KEPT, REMAT
from unimodal.tokens import tokens
from unimodal.visibility import Pattern

SMALL: dict[str, Any] = dict(width=16, depth=2, heads=2, kv_heads=1, activation="swiglu", rope_theta=10.0, qk_norm=True)
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 16), np.float32))


def step(**options: Any) -> tuple[Any, Any]:
    """Value and gradient of a small backbone as a function of its parameters, and the parameters."""
    structure, parameters = nnx.split(Backbone(BackboneConfig(**SMALL | options), rngs=nnx.Rngs(0)))

    def loss(parameters: Any) -> jax.Array:
        hidden, _ = nnx.merge(structure, parameters)(tokens(X, causal=True), key=jax.random.key(0))
        return jnp.sin(hidden).sum()

    return jax.value_and_grad(loss), parameters


def primitives(function: Any, *given: Any) -> Counter[str]:
    """How often each primitive is in a function's jaxpr, the name of a checkpoint_name in its stead. What has no result that
    anybody takes is left out, as the compiler leaves it out."""
    found: Counter[str] = Counter()

    def look(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            if all(type(variable).__name__ == "DropVar" for variable in equation.outvars):
                continue
            name = equation.primitive.name
            found[f"name {equation.params['name']}" if name == "name" else name] += 1
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                if hasattr(inner, "eqns"):
                    look(inner)
                elif hasattr(inner, "jaxpr"):
                    look(inner.jaxpr)

    look(jax.make_jaxpr(function)(*given).jaxpr)
    return found


@pytest.mark.parametrize(
    ("kernel", "position"),
    [("xla", "pre"), ("lean", "pre"), ("blockwise", "pre"), ("lean", "post"), ("lean", "sandwich")],
)
def test_gradients_are_those_without_it(kernel: str, position: str) -> None:
    found = []
    for remat in ("none", "light"):
        function, parameters = step(remat=remat, attention=kernel, norm_position=position)
        found.append(jax.tree.leaves(quick(function)(parameters)))
    assert len(found[0]) > 10
    for plain, light in zip(*found, strict=True):
        size = max(1.0, float(np.abs(plain).max()))
        np.testing.assert_allclose(light, plain, rtol=1e-6, atol=1e-6 * size)


def test_every_name_is_made_and_no_other() -> None:
    function, parameters = step(attention="blockwise", dropout=0.1, norm_position="post")
    made = {name.removeprefix("name ") for name in primitives(function, parameters) if name.startswith("name ")}
    assert made == set(KEPT)


@pytest.mark.parametrize("kernel", ["xla", "lean", "blockwise"])
def test_of_the_products_only_small_ones_are_computed_again(kernel: str) -> None:
    """The last of the attention, which nothing but the next norm wants, and the plain kernel's logits."""
    dots = {}
    for remat in REMAT:
        function, parameters = step(remat=remat, attention=kernel)
        dots[remat] = primitives(function, parameters)["dot_general"]
    assert dots["light"] - dots["none"] == (2 if kernel == "xla" else 1)
    assert dots["full"] - dots["none"] > 4


@pytest.mark.parametrize("position", ["post", "sandwich"])
def test_no_product_is_computed_again_before_a_norm(position: str) -> None:
    """The norm after a branch reads what the branch's last product gives."""
    dots = {}
    for remat in ("none", "light"):
        function, parameters = step(remat=remat, attention="blockwise", norm_position=position)
        dots[remat] = primitives(function, parameters)["dot_general"]
    assert dots["light"] == dots["none"]


def test_splash_runs_forward_once() -> None:
    pattern, q = Pattern((Span(128, True),)), jnp.zeros((1, 128, 1, 64))
    kernel: Any = partial(splash, segment=None, pattern=pattern, scale=1.0, interpret=True)

    def calls(remat: str) -> int:
        again = jax.checkpoint(lambda q: jnp.sin(kernel(jnp.sin(q), q, q)).sum(), policy=REMAT[remat])
        return primitives(jax.grad(again), q)["pallas_call"]

    assert (calls("light"), calls("full")) == (2, 3)  # forward, and backward in one


def test_cudnn_runs_forward_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    if not hasattr(fused, "check_cudnn_version"):
        pytest.skip("this version of JAX finds cuDNN otherwise")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    x = jnp.zeros((2, 128, 4, 64), jnp.bfloat16)

    def forward(x: jax.Array) -> jax.Array:
        out = attention(jnp.sin(x), x, x, (Span(128, True),), None, implementation="cudnn")
        return jnp.sin(out.astype(jnp.float32)).sum()

    def calls(remat: str) -> int:
        again = jax.grad(jax.checkpoint(forward, policy=REMAT[remat]))
        return primitives(again, x)["dot_product_attention_fwd_wrapper"]

    assert (calls("light"), calls("full")) == (1, 2)


def test_memory_falls() -> None:
    """By the compiler's own figures, of longer rows than the other tests have."""

    def held(remat: str, attention: str = "xla") -> int:
        config = BackboneConfig(width=32, depth=4, heads=4, remat=remat, attention=attention)
        model = jax.eval_shape(lambda: Backbone(config, rngs=nnx.Rngs(0)))
        loss = lambda model, x: jnp.sin(model(tokens(x))[0]).sum()  # noqa: E731
        program = jax.jit(jax.grad(loss)).lower(model, jax.ShapeDtypeStruct((4, 128, 32), jnp.float32)).compile()
        return program.memory_analysis().temp_size_in_bytes

    none, light, lean = held("none"), held("light"), held("none", "lean")
    assert light < 0.5 * none and lean < 0.7 * none, (none, light, lean)
