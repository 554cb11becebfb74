"""The rules that place arrays, the meshes that are refused, and the table that tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimodal import sharding
from unimodal.backbone import Backbone, BackboneConfig
from unimodal.errors import UsageError
from unimodal.layers import Linear
from unimodal.sharding import _laid_out, make_mesh, spec_for


@pytest.mark.parametrize(
    ("shape", "axes", "mesh", "spec"),
    [
        ((8, 16), ("embed", "mlp"), dict(fsdp=2, tensor=4), ("fsdp", "tensor")),
        ((8, 4, 2), ("embed", "heads", "head_size"), dict(fsdp=2, tensor=4), ("fsdp", "tensor", None)),
        ((3, 8, 16), ("embed", "mlp"), dict(fsdp=2, tensor=4), (None, "fsdp", "tensor")),  # stacked: layers lead
        ((8, 16), ("embed", "mlp"), dict(fsdp=8), ("fsdp", None)),  # axes of size 1 are left out
        ((7, 16), ("embed", "mlp"), dict(fsdp=2, tensor=4), (None, "tensor")),  # does not divide: stays whole
        (
            (8, 6, 5),
            ("batch", "tokens", "hidden"),
            dict(data=2, fsdp=2, sequence=2),
            (("data", "fsdp"), "sequence", None),
        ),
        ((8,), ("classes",), dict(fsdp=8), (None,)),
        ((), (), dict(fsdp=8), ()),
        ((263, 32), ("vocabulary", "embed"), dict(fsdp=2, tensor=4), (None, "fsdp")),
    ],
)
def test_spec_for(shape: tuple[int, ...], axes: tuple[str, ...], mesh: dict[str, int], spec: tuple[Any, ...]) -> None:
    assert spec_for(shape, axes, make_mesh(**{"data": 1, **mesh})) == PartitionSpec(*spec)


def test_two_logical_axes_on_one_mesh_axis() -> None:
    with pytest.raises(UsageError, match=r"p: logical axes 'mlp' and 'heads' both lie on mesh axis 'tensor'"):
        spec_for((8, 8), ("mlp", "heads"), make_mesh(data=1, tensor=2), name="p")
    # Where that mesh axis has one device there is nothing to contend for.
    assert spec_for((8, 8), ("mlp", "heads"), make_mesh(data=8), name="p") == PartitionSpec(None, None)


def test_unknown_logical_axis() -> None:
    with pytest.raises(UsageError, match=r"parameter p names the logical axis 'embd'.*embed"):
        spec_for((8,), ("embd",), make_mesh(), name="p")


def test_as_many_axes_as_dimensions() -> None:
    with pytest.raises(UsageError, match=r"parameter p has shape \(8, 8, 8\) but logical axes \('embed',\)"):
        spec_for((8, 8, 8), ("embed",), make_mesh(), name="p")


@pytest.mark.parametrize("axis", ["heads", "kv_heads", "mlp"])
def test_heads_and_mlp_must_divide(axis: str) -> None:
    with pytest.raises(UsageError, match=rf"{axis}=6 \(p\) is not divisible by mesh tensor=4"):
        spec_for((8, 6), ("embed", axis), make_mesh(data=1, tensor=4), name="p")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(data=16), "mesh data=16, fsdp=1, tensor=1, sequence=1 needs 16 devices, but there are 8"),
        (dict(data=-1, tensor=3), "3 does not divide the 8 devices"),
        (dict(data=-1, fsdp=-1), "only one mesh axis may be -1, but data and fsdp are"),
        (dict(tensor=0), "mesh sizes must be positive, or -1 for 'the rest', but tensor=0"),
        (dict(tensor=-2), "but tensor=-2"),
    ],
)
def test_refused_meshes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make_mesh(**sizes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_of_meshes() -> None:
    assert dict(make_mesh(fsdp=2).shape) == dict(data=4, fsdp=2, tensor=1, sequence=1)
    assert make_mesh(data=1, fsdp=3).size == 3  # some devices may be left idle, if all sizes are given
    few = make_mesh(devices=jax.devices()[:2])
    assert list(few.devices.flat) == jax.devices()[:2]
    assert sharding.batch_parts(make_mesh(data=2, fsdp=2, tensor=2)) == 4


@dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device: two slices, or two nodes of GPUs, differ in `slice_index`."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "a device"


@pytest.mark.parametrize(
    ("sizes", "across"),
    [
        (dict(data=8), ("data",)),
        (dict(data=2, fsdp=4), ("data",)),
        (dict(data=4, tensor=2), ("data",)),
        (dict(data=1, fsdp=8), ("fsdp",)),
        (dict(data=1, fsdp=1, tensor=8), ("tensor",)),
    ],
)
def test_slices_lie_along_the_first_axis_that_has_room(sizes: dict[str, int], across: tuple[str, ...]) -> None:
    devices = [Chip(id=place, slice_index=place % 2) for place in range(8)]  # not in the order of their slices
    grid = _laid_out([sizes.get(axis, 1) for axis in sharding.MESH_AXES], devices)
    assert {chip.id for chip in grid.flat} == set(range(8))
    slices = np.vectorize(lambda chip: chip.slice_index)(grid)
    differs = [axis for place, axis in enumerate(sharding.MESH_AXES) if (np.diff(slices, axis=place) != 0).any()]
    assert tuple(differs) == across


@pytest.mark.parametrize("micro", [1, 2, 3])
@pytest.mark.parametrize("sizes", [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(data=1, tensor=8)])
def test_rows_lie_where_the_batch_is_split(sizes: dict[str, int], micro: int) -> None:
    mesh, batch = make_mesh(**sizes), np.arange(96, dtype=np.float32).reshape(48, 2)
    rows = sharding.local_rows(mesh, 48, micro)
    assert rows == list(range(48))  # there is one process
    placed = sharding.from_local_rows({"x": batch[rows]}, mesh, micro)["x"]
    np.testing.assert_array_equal(placed, batch if micro == 1 else batch.reshape(micro, -1, 2))
    assert placed.sharding.is_equivalent_to(sharding.batch_sharding(mesh, leading=int(micro > 1)), placed.ndim)


def test_rows_of_a_process_that_holds_some_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two of four parts, not side by side, as a host of a torus has them; two micro-batches of eight rows.
    monkeypatch.setattr(sharding, "_local_parts", lambda mesh: [0, 2])
    assert sharding.local_rows(make_mesh(data=4, tensor=2), 16, 2) == [0, 1, 4, 5, 8, 9, 12, 13]


class Pair(nnx.Module):
    """Two projections, the second without a bias."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = Linear((8,), (16,), ("embed", "mlp"), rngs=rngs)
        self.down = Linear((16,), (8,), ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.up(x))


def make_pair(key: jax.Array) -> Pair:
    return Pair(nnx.Rngs(key))


def test_parameter_table() -> None:
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    rows = {row["name"]: row for row in sharding.parameter_table(jax.eval_shape(make_pair, jax.random.key(0)), mesh)}
    assert rows.keys() == {"up.kernel", "up.bias", "down.kernel"}
    up, bias = rows["up.kernel"], rows["up.bias"]
    assert (up["shape"], up["axes"], up["dtype"]) == ((8, 16), ("embed", "mlp"), "float32")
    assert up["spec"] == str(("fsdp", "tensor"))
    assert (up["bytes"], up["bytes_per_device"]) == (8 * 16 * 4, 8 * 16 * 4 // 8)
    assert (bias["bytes"], bias["bytes_per_device"]) == (16 * 4, 16 * 4 // 4)
    assert sharding.parameter_count(list(rows.values())) == 8 * 16 + 16 + 16 * 8


def test_initialise_is_the_unsharded_initialisation_in_pieces() -> None:
    key = jax.random.key(3)
    whole = make_pair(key)
    pieces = sharding.initialise(make_pair, make_mesh(data=1, fsdp=2, tensor=4), key)
    assert pieces.up.kernel.get_value().addressable_shards[0].data.shape == (4, 4)
    assert pieces.down.kernel.get_value().addressable_shards[0].data.shape == (4, 4)
    for name in ("up", "down"):
        found, wanted = (np.asarray(getattr(pair, name).kernel.get_value()) for pair in (pieces, whole))
        # The same random bits; only the rounding of what the compiler fuses around them may differ.
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


class Lone(nnx.Module):
    """One parameter of 4 MiB and a little, with whatever logical axes."""

    def __init__(self, axes: tuple[str, ...], rows: int = 1025):
        self.table = nnx.Param(jnp.zeros((rows, 1024)), axes=axes)


def test_a_large_parameter_is_not_left_replicated_silently() -> None:
    mesh = make_mesh(data=1, fsdp=8)
    with pytest.raises(UsageError, match=r"parameter table \(1025, 1024\) of 4 MiB would be replicated.*fsdp=8"):
        sharding.shardings(jax.eval_shape(lambda: Lone(("classes", "head_size"))), mesh)
    placed = sharding.shardings(jax.eval_shape(lambda: Lone(("classes", "embed"))), mesh)
    assert placed.table.get_value().spec == PartitionSpec(None, "fsdp")
    # Small ones may be, and so may any on a mesh that has nothing to shard over.
    sharding.shardings(jax.eval_shape(lambda: Lone(("classes", "head_size"), rows=1)), mesh)
    sharding.shardings(jax.eval_shape(lambda: Lone(("classes", "head_size"))), make_mesh(data=8))


def test_constrain_without_a_mesh_does_nothing() -> None:
    x = jnp.ones((4, 6, 8))
    assert sharding.constrain(x, "batch", "tokens", "hidden") is x
    with jax.set_mesh(make_mesh(data=1)):  # one device: nothing to say either
        assert sharding.constrain(x, "batch", "tokens", "hidden") is x


def test_constrain_on_a_mesh_splits() -> None:
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=1, sequence=2)):
        y = jax.jit(lambda x: sharding.constrain(x, "batch", "tokens", "hidden"))(jnp.ones((4, 6, 8)))
    assert y.addressable_shards[0].data.shape == (1, 3, 8)


def test_batches_are_split_over_data_and_fsdp() -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert sharding.batch_sharding(mesh).shard_shape((8, 3)) == (2, 3)
    assert sharding.batch_sharding(mesh, leading=1).shard_shape((2, 8, 3)) == (2, 2, 3)


def mixed() -> Mesh:
    return make_mesh(data=2, fsdp=2, tensor=2)


def test_rules_can_be_replaced() -> None:
    rules = {**sharding.RULES, "embed": "tensor", "mlp": None}
    assert spec_for((32, 128), ("embed", "mlp"), mixed(), rules=rules) == PartitionSpec("tensor", None)


def test_every_rule_names_mesh_axes() -> None:
    for axis, target in sharding.RULES.items():
        assert set((target,) if isinstance(target, str) else target or ()) <= set(sharding.MESH_AXES), axis


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
