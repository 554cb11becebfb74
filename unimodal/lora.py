"""LoRA (Hu 2021): the model is frozen, and a small pytree of adapters trains instead.

    adapters = lora(model, rank=8, alpha=16.0, where=r"attention\\.(query|value)")
    gradients = jax.grad(lambda adapters: loss(apply(model, adapters), batch))(adapters)
    plain = merge(model, adapters)

`apply` replaces each chosen `Linear` by an `Adapted`. The model's own code runs unchanged, scanned or not. Gradients of frozen
kernels, which are as large as the model, are never computed. Adding A·B to the kernels inside the differentiated function
would compute them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.typing import DTypeLike

from unimodal.errors import UsageError
from unimodal.layers import Linear, fan_in
from unimodal.sharding import initialise, path_name, shardings

M = TypeVar("M")
Where = str | Callable[[str], bool]

FORMAT = "unimodal.lora"
QUERY_AND_VALUE = r"attention\.(query|value)\.kernel"  # what Hu 2021 (§4.2, §7.1) adapts
_PROBES = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pair:
    """One adapter. Where the kernel is stacked, both arrays have the layers in front."""

    a: nnx.Param  # [*inputs, rank]
    b: nnx.Param  # [rank, *outputs]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapters:
    """The parameters that train. A pytree, so grad and optax work on it."""

    layers: dict[str, Pair]  # a pair for each adapted layer, by its path in the model
    rank: int = field(metadata={"static": True})  # columns of each a
    alpha: float = field(metadata={"static": True})  # the product a·b is scaled by alpha/rank
    where: str = field(metadata={"static": True})  # which layers have adapters

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Adapted(nnx.Module):
    """A Linear and its adapter: y = base(x) + scale · (x·A)·B."""

    def __init__(self, base: Linear, pair: Pair, scale: float):
        self.base, self.a, self.b, self.scale = base, pair.a, pair.b, scale

    @property
    def kernel(self) -> nnx.Variable[jax.Array]:
        """The merged kernel, for code that reads kernels itself."""
        kernel = self.base.kernel
        return kernel.replace(_merged(kernel.get_value(), self.a.get_value(), self.b.get_value(), self.scale))

    @property
    def bias(self) -> nnx.Param | None:
        return self.base.bias

    def __call__(self, x: jax.Array) -> jax.Array:
        a, b = (p.get_value().astype(x.dtype) for p in (self.a, self.b))
        return self.base(x) + self.scale * jnp.tensordot(jnp.tensordot(x, a, self.base.contracted), b, 1)


def lora(
    model: Any,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    where: Where = QUERY_AND_VALUE,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Adapters:
    """Make adapters of rank `rank` for the Linear layers of `model` whose kernel's path `where` chooses.

    where: a regular expression searched for in paths such as "backbones.text.layers.attention.query.kernel", or a
    function of the path. A is random and B zero, so `apply(model, adapters)` starts as exactly the model. alpha / rank
    scales A·B. key: for A (None: seed 0). mesh: adapters are created in shards on it, as their kernels are. `model` may
    be shapes only. Raises UsageError for a rank below 1, or where no layer is chosen.
    """
    if rank < 1:
        raise UsageError(f"lora rank must be at least 1, but is {rank}")
    layers = _linear_layers(model)
    chosen = {path: layer for path, layer in layers.items() if _matches(where, f"{path}.kernel")}
    if not chosen:
        wanted = repr(where) if isinstance(where, str) else "the function given"
        known = ", ".join(sorted({path.split(".layers.")[-1] for path in layers})) or "none at all"
        raise UsageError(f"lora where={wanted} chooses no linear layer of this model; there is {known}")

    def make(key: jax.Array) -> Adapters:
        # Depends on the name alone, so an adapter starts the same whatever else is adapted.
        seeds = {path: jax.random.fold_in(key, zlib.crc32(path.encode())) for path in chosen}
        pairs = {path: _pair(layer, rank, seeds[path], dtype) for path, layer in chosen.items()}
        return Adapters(pairs, rank, float(alpha), where if isinstance(where, str) else "")

    key = jax.random.key(0) if key is None else key
    return make(key) if mesh is None else initialise(make, mesh, key)


def apply(model: M, adapters: Adapters) -> M:
    """Give a model that uses the adapters. It shares all weights with `model`, which stays as it is, and costs nothing.

    Differentiate a function of the result with respect to `adapters`. Raises UsageError for a model that they do not fit.
    """
    _check_fits(model, adapters)
    return _replaced(model, lambda path, layer: Adapted(layer, adapters.layers[path], adapters.scale), adapters)


def merge(model: M, adapters: Adapters) -> M:
    """Give a plain model with kernels W + (alpha/rank)·A·B, in the kernels' own dtypes and shards.

    Raises UsageError for a model that the adapters do not fit.
    """
    _check_fits(model, adapters)

    def merged(path: str, layer: Linear) -> Linear:
        kernel, pair = layer.kernel.get_value(), adapters.layers[path]
        where = None if isinstance(kernel, Tracer) else kernel.sharding
        run = jax.jit(_merged, static_argnums=3, out_shardings=where)
        plain = jax.tree.map(lambda leaf: leaf, layer)  # another module, of the same arrays
        plain.kernel = layer.kernel.replace(run(kernel, pair.a.get_value(), pair.b.get_value(), adapters.scale))
        return plain

    return _replaced(model, merged, adapters)


def save(adapters: Adapters, path: str | Path, model: Any) -> None:
    """Write the adapters alone as one safetensors file, with rank, alpha and `where` in its metadata.

    The file also holds a few numbers of each adapted kernel, by which `load` recognises the model. Raises UsageError for
    a model that they do not fit, or a file that cannot be written.
    """
    _check_fits(model, adapters)
    layers, tensors = _linear_layers(model), {}
    for name, pair in adapters.layers.items():
        probes = _probes(layers[name].kernel.get_value())
        tensors |= {f"{name}.a": _on_host(pair.a), f"{name}.b": _on_host(pair.b), f"{name}.base": probes}
    facts = dict(format=FORMAT, rank=str(adapters.rank), alpha=repr(adapters.alpha), where=adapters.where)
    if jax.process_index() != 0:
        return
    fresh = Path(path).with_name(Path(path).name + ".partial")
    try:
        safetensors.numpy.save_file(tensors, fresh, metadata=facts)
        fresh.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(f"cannot write {path}: {error}") from error


def load(path: str | Path, model: Any, *, mesh: Mesh | None = None) -> Adapters:
    """Read the adapters that `save` wrote, bit for bit. On a `mesh` they lie in the shards of their kernels.

    Raises UsageError for a file of another kind, and for a model that they were not trained with: one of other layers,
    shapes or weights. Weights may differ by one part in a hundred, so the model may have another dtype.
    """
    tensors, facts = _read(Path(path))
    layers, rank = _linear_layers(model), int(facts["rank"])
    pairs = {}
    for name in sorted(key.removesuffix(".a") for key in tensors if key.endswith(".a")):
        if name not in layers:
            raise UsageError(f"the adapters in {path} do not fit this model, which has no linear layer {name}")
        a, b, layer = tensors[f"{name}.a"], tensors[f"{name}.b"], layers[name]
        _check_shapes(f"the adapters in {path}", name, layer, a.shape, b.shape, rank)
        _check_base(path, name, layer, tensors[f"{name}.base"])
        pairs[name] = Pair(*(nnx.Param(v, axes=axes) for v, axes in zip((a, b), _axes(layer), strict=True)))
    adapters = Adapters(pairs, rank, float(facts["alpha"]), facts["where"])
    if mesh is None:
        return jax.tree.map(jnp.asarray, adapters)
    where = shardings(adapters, mesh)
    return jax.tree.map(lambda v, s: jax.make_array_from_callback(v.shape, s, lambda i: v[i]), adapters, where)


def _linear_layers(model: Any) -> dict[str, Linear]:
    """Find every Linear by its path, in the order of the tree."""
    found = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda x: isinstance(x, Linear))[0]
    return {_name(path): layer for path, layer in found if isinstance(layer, Linear)}


def _name(path: Any) -> str:
    # Take the kernel's path without its end: a path that ends in "value" would look like a Variable's.
    return path_name((*path, jax.tree_util.GetAttrKey("kernel"))).removesuffix(".kernel")


def _replaced(model: M, change: Callable[[str, Linear], Any], adapters: Adapters) -> M:
    """Copy the model's structure, with `change(path, layer)` in place of each adapted layer."""

    def visit(path: Any, leaf: Any) -> Any:
        adapted = isinstance(leaf, Linear) and _name(path) in adapters.layers
        return change(_name(path), leaf) if adapted else leaf

    return jax.tree_util.tree_map_with_path(visit, model, is_leaf=lambda x: isinstance(x, Linear))


def _matches(where: Where, path: str) -> bool:
    return re.search(where, path) is not None if isinstance(where, str) else where(path)


def _shapes(layer: Linear, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the shapes of a and b. A stacked kernel has one dimension more than named axes."""
    shape, stacked = layer.kernel.get_value().shape, _stacked(layer)
    front, rest = shape[:stacked], shape[stacked:]
    return (*front, *rest[: layer.contracted], rank), (*front, rank, *rest[layer.contracted :])


def _axes(layer: Linear) -> tuple[tuple[str, ...], tuple[str, ...]]:
    axes = layer.kernel.get_metadata()["axes"]
    return (*axes[: layer.contracted], "rank"), ("rank", *axes[layer.contracted :])


def _stacked(layer: Linear) -> int:
    return layer.kernel.get_value().ndim - len(layer.kernel.get_metadata()["axes"])


def _pair(layer: Linear, rank: int, key: jax.Array, dtype: DTypeLike) -> Pair:
    (a, b), (a_axes, b_axes) = _shapes(layer, rank), _axes(layer)
    inputs = a[_stacked(layer) : -1]
    random = fan_in(1.0, inputs)(key, a, dtype)  # as the kernel itself would be, so that x·A is of x's size
    return Pair(nnx.Param(random, axes=a_axes), nnx.Param(jnp.zeros(b, dtype), axes=b_axes))


def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """Compute W + scale·A·B in float32, layer by layer where stacked, and round to the dtype of W."""
    product = partial(jnp.tensordot, axes=1, precision="highest")
    if a.ndim + b.ndim - 2 > kernel.ndim:  # the layers are counted twice
        product = jax.vmap(product)
    change = scale * product(a.astype(jnp.float32), b.astype(jnp.float32))
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)


def _check_fits(model: Any, adapters: Adapters) -> None:
    layers = _linear_layers(model)
    for name, pair in adapters.layers.items():
        if name not in layers:
            raise UsageError(f"these adapters do not fit this model, which has no linear layer {name}")
        shapes = pair.a.get_value().shape, pair.b.get_value().shape
        _check_shapes("these adapters", name, layers[name], *shapes, adapters.rank)


def _check_shapes(what: str, name: str, layer: Linear, a: tuple[int, ...], b: tuple[int, ...], rank: int) -> None:
    wanted = _shapes(layer, rank)
    if (tuple(a), tuple(b)) != wanted:
        kernel = layer.kernel.get_value().shape
        raise UsageError(
            f"{what} do not fit this model: {name} has A {tuple(a)} and B {tuple(b)}, but the model's kernel {kernel} "
            f"takes {wanted[0]} and {wanted[1]}"
        )


def _probes(kernel: jax.Array) -> np.ndarray:
    """Take a few entries spread over a kernel, float32: enough to tell it from another."""
    index = np.unravel_index(np.linspace(0, kernel.size - 1, _PROBES).astype(int), kernel.shape)
    return _on_host(jnp.asarray(kernel[index], jnp.float32))


def _check_base(path: str | Path, name: str, layer: Linear, wanted: np.ndarray) -> None:
    kernel = layer.kernel.get_value()
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return  # nothing but shapes to hold it against
    if not np.allclose(_probes(kernel), wanted, rtol=1e-2, atol=1e-2 * float(np.abs(wanted).max())):
        raise UsageError(
            f"the adapters in {path} were trained beside other weights: {name} differs in this model; load the one they are for"
        )


def _read(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give one that unimodal.lora.save wrote")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except safetensors.SafetensorError as error:
        raise UsageError(f"{path} is damaged or no safetensors file: {error}") from error
    if facts.get("format") != FORMAT:
        raise UsageError(f"{path} holds no adapters: its format is {facts.get('format')!r}, not {FORMAT!r}")
    return tensors, facts


def _on_host(array: Any) -> np.ndarray:
    value = array.get_value() if isinstance(array, nnx.Variable) else array
    if not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)
