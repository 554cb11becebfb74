"""Meshes, the rules that place logical axes on them, and the errors that are better than a silent OOM."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimodal.backbone import Backbone, BackboneConfig
from unimodal.errors import UsageError
from unimodal.layers import Linear
from unimodal.sharding import (
    LARGE_BYTES,
    MESH_AXES,
    RULES,
    batch_parts,
    batch_sharding,
    constrain,
    initialise,
    make_mesh,
    parameter_count,
    parameter_table,
    shardings,
    spec_for,
)


def mixed() -> Mesh:
    return make_mesh(data=2, fsdp=2, tensor=2)


# --- meshes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        (dict(), (8, 1, 1, 1)),
        (dict(data=1), (1, 1, 1, 1)),
        (dict(data=3), (3, 1, 1, 1)),
        (dict(fsdp=4), (2, 4, 1, 1)),
        (dict(data=2, fsdp=-1, tensor=2), (2, 2, 2, 1)),
        (dict(data=1, tensor=4), (1, 1, 4, 1)),
        (dict(data=2, sequence=-1), (2, 1, 1, 4)),
    ],
)
def test_mesh_sizes(asked: dict[str, int], made: tuple[int, ...]) -> None:
    mesh = make_mesh(**asked)
    assert mesh.axis_names == MESH_AXES
    assert tuple(mesh.shape.values()) == made
    assert len(set(mesh.devices.flat)) == mesh.size


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(data=16), "needs 16 devices, but there are 8"),
        (dict(data=-1, fsdp=16), "needs 16 devices, but there are 8"),
        (dict(data=3, fsdp=3), "needs 9 devices, but there are 8"),
        (dict(fsdp=3), "3 does not divide the 8 devices"),
        (dict(fsdp=-1, tensor=1), "only one mesh axis may be -1, but data and fsdp are"),
        (dict(data=0), "must be positive, or -1"),
        (dict(data=1, tensor=-2), "must be positive, or -1 for 'the rest', but tensor=-2"),
    ],
)
def test_impossible_meshes(asked: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        make_mesh(**asked)
    assert "\n" not in str(caught.value)


def test_mesh_of_given_devices() -> None:
    two = jax.devices()[2:4]
    assert list(make_mesh(fsdp=2, devices=two).devices.flat) == two


def test_batches_are_split_over_data_and_fsdp() -> None:
    mesh = mixed()
    assert batch_parts(mesh) == 4
    batch = jax.device_put(np.zeros((8, 3)), batch_sharding(mesh))
    assert batch.addressable_shards[0].data.shape == (2, 3)
    micro = jax.device_put(np.zeros((2, 8, 3)), batch_sharding(mesh, leading=1))
    assert micro.addressable_shards[0].data.shape == (2, 2, 3)


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axes", "spec"),
    [
        ((32, 128), ("embed", "mlp"), ("fsdp", "tensor")),
        ((32, 4, 8), ("embed", "heads", "head_size"), ("fsdp", "tensor", None)),
        ((3, 32, 128), ("embed", "mlp"), (None, "fsdp", "tensor")),  # stacked: `layers` comes first
        ((264, 32), ("vocabulary", "embed"), ("tensor", "fsdp")),
        ((32,), ("hidden",), (None,)),
        ((), (), ()),
        ((31, 128), ("embed", "mlp"), (None, "tensor")),  # what does not divide stays whole
        ((263, 32), ("vocabulary", "embed"), (None, "fsdp")),
        ((8, 16, 32), ("batch", "tokens", "hidden"), (("data", "fsdp"), None, None)),
    ],
)
def test_spec_for(shape: tuple[int, ...], axes: tuple[str, ...], spec: tuple[Any, ...]) -> None:
    assert spec_for(shape, axes, mixed()) == PartitionSpec(*spec)


def test_mesh_axes_of_size_one_are_left_out() -> None:
    assert spec_for((32, 128), ("embed", "mlp"), make_mesh(data=1, tensor=4)) == PartitionSpec(None, "tensor")
    assert spec_for((32, 128), ("embed", "mlp"), make_mesh()) == PartitionSpec(None, None)


def test_rules_can_be_replaced() -> None:
    rules = {**RULES, "embed": "tensor", "mlp": None}
    assert spec_for((32, 128), ("embed", "mlp"), mixed(), rules=rules) == PartitionSpec("tensor", None)


def test_every_rule_names_mesh_axes() -> None:
    for axis, target in RULES.items():
        assert set((target,) if isinstance(target, str) else target or ()) <= set(MESH_AXES), axis


@pytest.mark.parametrize(
    ("shape", "axes", "says"),
    [
        ((32, 32), ("embed", "channels"), "logical axes 'embed' and 'channels' both lie on mesh axis 'fsdp'"),
        ((8, 32), ("batch", "embed"), "'batch' and 'embed' both lie on mesh axis 'fsdp'"),
        ((32, 5, 8), ("embed", "heads", "head_size"), r"heads=5 \(p.kernel\) is not divisible by mesh tensor=2"),
        ((32, 1, 8), ("embed", "kv_heads", "head_size"), r"kv_heads=1 \(p.kernel\) is not divisible"),
        ((32, 127), ("embed", "mlp"), r"mlp=127 \(p.kernel\) is not divisible by mesh tensor=2"),
        ((32, 32), ("embed", "mpl"), "p.kernel names the logical axis 'mpl', which is not among .*mlp"),
        ((32,), ("embed", "mlp"), r"p.kernel has shape \(32,\) but logical axes"),
        ((2, 3, 32, 128), ("embed", "mlp"), "p.kernel has shape"),
    ],
)
def test_axes_that_cannot_be(shape: tuple[int, ...], axes: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        spec_for(shape, axes, mixed(), name="p.kernel")
    assert "\n" not in str(caught.value)


def test_heads_that_the_mesh_does_not_divide_are_named() -> None:
    backbone = jax.eval_shape(lambda: Backbone(BackboneConfig(width=24, depth=1, heads=3), rngs=nnx.Rngs(0)))
    with pytest.raises(UsageError, match=r"heads=3 \(layers.attention.*\) is not divisible by mesh tensor=2"):
        shardings(backbone, mixed())


# --- trees ------------------------------------------------------------------------------------------------------------


class Pair(nnx.Module):
    """A parameter with logical axes, one without, and a variable that is no parameter."""

    def __init__(self, rows: int) -> None:
        self.known = nnx.Param(jnp.zeros((rows, 64)), axes=("embed", "mlp"))
        self.unknown = nnx.Param(jnp.zeros((rows, 64)))
        self.queue = nnx.Variable(jnp.zeros((rows, 64)), axes=("place", "embed"))


def abstract(rows: int) -> Any:
    return jax.eval_shape(lambda: Pair(rows))


def test_shardings_of_a_tree() -> None:
    where = shardings({"model": abstract(32), "count": jax.ShapeDtypeStruct((), jnp.int32)}, mixed())
    assert where["model"].known.get_value().spec == PartitionSpec("fsdp", "tensor")
    assert where["model"].unknown.get_value().spec == PartitionSpec()
    assert where["model"].queue.get_value().spec == PartitionSpec(None, "fsdp")
    assert where["count"] == NamedSharding(mixed(), PartitionSpec())


def test_a_large_replicated_parameter_is_named() -> None:
    rows = LARGE_BYTES // (64 * 4)
    shardings(abstract(rows), mixed())  # just small enough
    with pytest.raises(
        UsageError, match=r"parameter unknown \(\d+, 64\) of 4 MiB would be replicated .*fsdp=2, tensor=2"
    ):
        shardings(abstract(rows + 2), mixed())
    shardings(abstract(rows + 2), make_mesh())  # nothing to shard over: no complaint


def test_a_large_parameter_left_whole_by_its_rule_is_named() -> None:
    rows = LARGE_BYTES // (64 * 4) + 1  # odd, and 63 columns: neither dimension divides
    made = jax.eval_shape(
        lambda: Linear((rows,), (65,), ("vocabulary", "embed"), bias=False, rngs=nnx.Rngs(0)),
    )
    with pytest.raises(UsageError, match="parameter kernel .* would be replicated"):
        shardings(made, mixed())


def test_initialise_gives_the_same_numbers_on_every_mesh() -> None:
    def make(key: jax.Array) -> Linear:
        return Linear((32,), (64,), ("embed", "mlp"), rngs=nnx.Rngs(key))

    one, many = (initialise(make, mesh, jax.random.key(3)) for mesh in (make_mesh(data=1), mixed()))
    for name in ("kernel", "bias"):
        a, b = getattr(one, name).get_value(), getattr(many, name).get_value()
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6)
    assert many.kernel.get_value().addressable_shards[0].data.shape == (16, 32)
    assert many.bias.get_value().addressable_shards[0].data.shape == (32,)


# --- activations ------------------------------------------------------------------------------------------------------


def test_constrain_does_nothing_without_a_mesh() -> None:
    x = jnp.zeros((8, 4, 32))
    assert constrain(x, "batch", "tokens", "hidden") is x
    with jax.set_mesh(make_mesh(data=1)):
        assert constrain(x, "batch", "tokens", "hidden") is x


def test_constrain_does_nothing_on_a_mesh_of_other_axes() -> None:
    x = jnp.zeros((8, 4, 32))
    with jax.set_mesh(Mesh(np.array(jax.devices()), ("rows",))):
        assert constrain(x, "batch", "tokens", "hidden") is x


def test_constrain_places_activations() -> None:
    mesh = mixed()
    with jax.set_mesh(mesh):
        x = jax.jit(lambda x: constrain(x, "batch", "tokens", "mlp"))(jnp.zeros((8, 4, 32)))
        assert {shard.data.shape for shard in x.addressable_shards} == {(2, 4, 16)}
        # Three examples cannot be split in four: the compiler decides, and nothing fails.
        odd = jax.jit(lambda x: constrain(x, "batch", "tokens", "mlp"))(jnp.zeros((3, 4, 32)))
        assert odd.shape == (3, 4, 32)


# --- the table --------------------------------------------------------------------------------------------------------


def test_parameter_table() -> None:
    def make() -> nnx.Module:
        return nnx.Dict(
            one=Linear((32,), (64,), ("embed", "mlp"), rngs=nnx.Rngs(0)),
            many=jax.vmap(lambda key: Linear((32,), (64,), ("embed", "mlp"), rngs=nnx.Rngs(key)))(
                jax.random.split(jax.random.key(0), 3)
            ),
            half=nnx.Param(jnp.zeros((5, 7), jnp.bfloat16)),
        )

    rows = {row["name"]: row for row in parameter_table(jax.eval_shape(make), mixed())}
    assert rows["one.kernel"] == dict(
        name="one.kernel",
        shape=(32, 64),
        dtype="float32",
        axes=("embed", "mlp"),
        spec="('fsdp', 'tensor')",
        bytes=32 * 64 * 4,
        bytes_per_device=32 * 64,
    )
    assert rows["many.kernel"]["axes"] == ("layers", "embed", "mlp")
    assert rows["many.kernel"]["bytes_per_device"] == 3 * 32 * 64
    assert rows["many.bias"] | dict(spec="") == dict(
        name="many.bias",
        shape=(3, 64),
        dtype="float32",
        axes=("layers", "mlp"),
        spec="",
        bytes=3 * 64 * 4,
        bytes_per_device=3 * 64 * 2,
    )
    assert rows["half"]["bytes"] == rows["half"]["bytes_per_device"] == 5 * 7 * 2
    assert parameter_count(list(rows.values())) == (32 * 64 + 64) * 4 + 35


def mixed() -> Mesh:
    return make_mesh(data=2, fsdp=2, tensor=2)


def test_rules_can_be_replaced() -> None:
    rules = {**sharding.RULES, "embed": "tensor", "mlp": None}
    assert spec_for((32, 128), ("embed", "mlp"), mixed(), rules=rules) == PartitionSpec("tensor", None)


def test_every_rule_names_mesh_axes() -> None:
    for axis, target in sharding.RULES.items():
        assert set((target,) if isinstance(target, str) else target or ()) <= set(MESH_AXES), axis


def test_heads_that_the_mesh_does_not_divide_are_named() -> None:
    backbone = jax.eval_shape(lambda: Backbone(BackboneConfig(width=24, depth=1, heads=3), rngs=nnx.Rngs(0)))
    with pytest.raises(UsageError, match=r"heads=3 \(layers.attention.*\) is not divisible by mesh tensor=2"):
        sharding.shardings(backbone, mixed())


def test_constrain_does_nothing_on_a_mesh_of_other_axes() -> None:
    x = jnp.zeros((8, 4, 32))
    with jax.set_mesh(Mesh(np.array(jax.devices()), ("rows",))):
        assert sharding.constrain(x, "batch", "tokens", "hidden") is x


def test_constrain_places_activations() -> None:
    mesh = mixed()
    with jax.set_mesh(mesh):
        x = jax.jit(lambda x: sharding.constrain(x, "batch", "tokens", "mlp"))(jnp.zeros((8, 4, 32)))
        assert {shard.data.shape for shard in x.addressable_shards} == {(2, 4, 16)}
        # Three examples cannot be split in four: the compiler decides, and nothing fails.
        odd = jax.jit(lambda x: sharding.constrain(x, "batch", "tokens", "mlp"))(jnp.zeros((3, 4, 32)))
        assert odd.shape == (3, 4, 32)


class Triple(nnx.Module):
    """A parameter with logical axes, one without, and a variable that is no parameter."""

    def __init__(self) -> None:
        self.known = nnx.Param(jnp.zeros((32, 64)), axes=("embed", "mlp"))
        self.unknown = nnx.Param(jnp.zeros((32, 64)))
        self.queue = nnx.Variable(jnp.zeros((32, 64)), axes=("place", "embed"))


def test_shardings_of_a_tree() -> None:
    tree = {"model": jax.eval_shape(Triple), "count": jax.ShapeDtypeStruct((), jnp.int32)}
    where = sharding.shardings(tree, mixed())
    assert where["model"].known.get_value().spec == PartitionSpec("fsdp", "tensor")
    assert where["model"].unknown.get_value().spec == PartitionSpec()
    assert where["model"].queue.get_value().spec == PartitionSpec(None, "fsdp")
    assert where["count"] == NamedSharding(mixed(), PartitionSpec())


def test_stacked_parameters_in_the_table() -> None:
    def make() -> nnx.Module:
        def layer(key: jax.Array) -> Linear:
            return Linear((32,), (64,), ("embed", "mlp"), rngs=nnx.Rngs(key))

        stacked = jax.vmap(layer)(jax.random.split(jax.random.key(0), 3))
        return nnx.Dict(many=stacked, half=nnx.Param(jnp.zeros((5, 7), jnp.bfloat16)))

    rows = {row["name"]: row for row in sharding.parameter_table(jax.eval_shape(make), mixed())}
    assert rows["many.kernel"]["axes"] == ("layers", "embed", "mlp")
    assert rows["many.kernel"]["bytes_per_device"] == 3 * 32 * 64 * 4 // 4
    assert rows["many.bias"]["axes"] == ("layers", "mlp")
    assert rows["many.bias"]["bytes_per_device"] == 3 * 64 * 4 // 2
    assert rows["half"]["bytes"] == rows["half"]["bytes_per_device"] == 5 * 7 * 2
