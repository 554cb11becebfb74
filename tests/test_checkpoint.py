"""Checkpoints: any mesh restores onto any other, and whatever is not what was saved is one clear error."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from unimodal.errors import UsageError
from unimodal.layers import Linear
from unimodal.sharding import make_mesh
from unimodal.training.checkpoint import Checkpoints, named
from unimodal.training.fingerprint import fingerprint, leaf_hash, leaf_hashes
from unimodal.training.step import Program
from unimodal.training.workdir import claim_workdir

SPLIT, ONE = dict(data=1, fsdp=8), dict(data=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tiny.Run]:
    """A workdir with a checkpoint of step 2, trained on eight devices, and the run that wrote it."""
    workdir = tmp_path_factory.mktemp("saved")
    return workdir, tiny.train(tiny.plain("vit", steps=2, mesh=SPLIT), workdir)


def restore(workdir: Path, *kinds: str, **changes: Any) -> tuple[Any, Any, str]:
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore(tiny.build(tiny.plain(*kinds, **changes)).program.abstract_state())
    finally:
        checkpoints.close()


def save(workdir: Path, state: Any) -> str:
    checkpoints = Checkpoints(workdir)
    found = checkpoints.save(state, {})
    checkpoints.close()
    return found


def same_bits(left: Any, right: Any) -> None:
    left, right = named(left), named(right)
    assert list(left) == list(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert np.asarray(value).tobytes() == np.asarray(right[name]).tobytes(), name


def kernel(state: Any) -> jax.Array:
    return state.parameters["backbones"]["shared"]["layers"]["mlp"]["up"]["kernel"].get_value()


def test_any_mesh_restores_onto_any_other(saved: tuple[Path, tiny.Run], tmp_path: Path) -> None:
    workdir, run = saved
    one, iterators, found = restore(workdir, "vit", mesh=ONE)
    assert kernel(run.state).addressable_shards[0].data.shape == (2, 4, 128)
    assert len(kernel(one).sharding.device_set) == 1
    assert list(iterators) == ["vit"]
    assert found == run.fingerprint
    same_bits(one, run.state)
    # And back: the numbers that one device writes are the same, and eight take them up in their shards.
    assert save(tmp_path, one) == run.fingerprint
    eight, _, found = restore(tmp_path, "vit", mesh=SPLIT)
    assert found == run.fingerprint
    same_bits(eight, run.state)
    assert kernel(eight).sharding == kernel(run.state).sharding


def test_fingerprint_is_that_of_the_state(saved: tuple[Path, tiny.Run]) -> None:
    _, run = saved
    hashes = {name: int(value) for name, value in leaf_hashes(named(run.state)).items()}
    assert fingerprint(hashes) == run.fingerprint
    name = next(iter(hashes))
    assert fingerprint({**hashes, name: hashes[name] ^ 1}) != run.fingerprint
    assert fingerprint(dict(reversed(hashes.items()))) == run.fingerprint


# The store leaves its other reads unfinished when one of them fails, and Python remarks on that.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("where", [0.0, 0.3, 0.5, 0.7, 0.9])
def test_a_flipped_bit_in_a_file_is_noticed(where: float, saved: tuple[Path, tiny.Run], tmp_path: Path) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(saved[0], workdir)
    files = [path for path in (workdir / "checkpoints" / "2" / "arrays").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    # At the beginning of one file may lie what is never read again; at that of every file lies what is.
    for path in files if where == 0 else [largest]:
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= 1
        path.write_bytes(content)
    try:
        state, _, found = restore(workdir, "vit")
    except UsageError as error:
        assert str(error).startswith("checkpoint 2 ")
        assert "\n" not in str(error)
    else:  # the store keeps bytes that it never reads: harmless, if it is those
        assert where > 0
        assert found == saved[1].fingerprint
        same_bits(state, saved[1].state)
    gc.collect()  # now, or the remarks would come in a later test


def test_other_bits_than_were_hashed_are_damage(
    saved: tuple[Path, tiny.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The store has checksums of its own; this is what notices when memory, and not the disk, has lost a bit.
    from unimodal.training import checkpoint

    def flipped(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        name = next(name for name in arrays if name.endswith("mlp.up.kernel"))
        bits = jax.lax.bitcast_convert_type(arrays[name], jnp.uint32).at[1, 2, 3].set(7)
        return leaf_hashes({**arrays, name: jax.lax.bitcast_convert_type(bits, jnp.float32)})

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "leaf_hashes", flipped)
        save(tmp_path, saved[1].state)
    with pytest.raises(UsageError, match=r"checkpoint 2 is damaged: \S*mlp\.up\.kernel does not match"):
        restore(tmp_path, "vit")


def test_damaged_facts_are_one_error(saved: tuple[Path, tiny.Run], tmp_path: Path) -> None:
    workdir = tmp_path / "copy"
    shutil.copytree(saved[0], workdir)
    files = [path for path in (workdir / "checkpoints" / "2" / "facts").rglob("*") if path.is_file()]
    path = next(path for path in files if b"hashes" in path.read_bytes())
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UsageError, match="checkpoint 2 "):
        restore(workdir, "vit")


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint in .*train first"):
        restore(tmp_path, "vit")


def test_another_model_names_an_array(saved: tuple[Path, tiny.Run]) -> None:
    with pytest.raises(UsageError, match=r"heads\.clip\.\S+ .*in the model but not in the checkpoint") as caught:
        restore(saved[0], "clip", "vit")
    assert str(caught.value).startswith("checkpoint 2 does not fit the model")
    with pytest.raises(UsageError, match=r"heads\.vit\.\S+ .*in the checkpoint but not in the model"):
        restore(saved[0], "gpt")


def test_another_width_names_an_array(saved: tuple[Path, tiny.Run]) -> None:
    with pytest.raises(UsageError, match="checkpoint 2 does not fit the model: .*backbones") as caught:
        restore(saved[0], "vit", backbones__shared__width=64)
    assert "\n" not in str(caught.value)


def test_a_workdir_has_one_config(tmp_path: Path) -> None:
    config = tiny.plain("vit", steps=2)
    claim_workdir(tmp_path, config)
    claim_workdir(tmp_path, config)
    other = tiny.plain("vit", steps=3, optimizer__learning_rate=0.5)
    with pytest.raises(UsageError, match=r"optimizer.learning_rate: 0.003 there, 0.5 now; steps: 2 there, 3 now"):
        claim_workdir(tmp_path, other)
    moved = tiny.plain("vit", steps=2, mesh=SPLIT, log_every=5)
    claim_workdir(tmp_path, moved, may_differ=("mesh", "log_every"))
    with pytest.raises(UsageError, match=r"mesh\.fsdp: None there, 8 now"):
        claim_workdir(tmp_path, moved, may_differ=("log_every", "me"))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_hash_does_not_depend_on_sharding() -> None:
    values = jax.random.normal(jax.random.key(0), (16, 24))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    split = jax.device_put(values, NamedSharding(mesh, PartitionSpec("fsdp", ("data", "tensor"))))
    assert split.addressable_shards[0].data.shape == (8, 6)
    assert int(leaf_hashes({"x": split})["x"]) == int(leaf_hashes({"x": values})["x"]) == int(leaf_hash(values))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_])
def test_hash_notices_every_exchange(dtype: Any) -> None:
    values = (np.arange(12).reshape(3, 4) % 5 > 1 if dtype is jnp.bool_ else np.arange(1, 13).reshape(3, 4)).astype(
        dtype
    )
    base, swapped = int(leaf_hash(jnp.asarray(values))), jax.jit(leaf_hash)
    assert int(swapped(jnp.asarray(values))) == base
    flat = values.reshape(-1)
    for i in range(12):
        for j in range(i):
            if flat[i] != flat[j]:
                other = flat.copy()
                other[[i, j]] = other[[j, i]]
                assert int(swapped(jnp.asarray(other.reshape(3, 4)))) != base, (i, j)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint16, np.uint8])
def test_hash_notices_every_single_bit(dtype: Any) -> None:
    as_floats = {np.uint32: jnp.float32, np.uint16: jnp.bfloat16, np.uint8: jnp.int8}[dtype]
    bits = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, 6).astype(dtype)
    hashed = jax.jit(lambda x: leaf_hash(jax.lax.bitcast_convert_type(x, as_floats)))
    base = int(hashed(bits))
    for element in range(6):
        for bit in range(8 * bits.itemsize):
            other = bits.copy()
            other[element] ^= dtype(1 << bit)
            assert int(hashed(other)) != base, (element, bit)


def test_hash_tells_zeros_apart() -> None:
    assert int(leaf_hash(jnp.float32(0.0))) != int(leaf_hash(jnp.float32(-0.0)))
    assert int(leaf_hash(jnp.zeros((2,), bool))) != int(leaf_hash(jnp.zeros((3,), bool)))


class Counted(nnx.Module):
    """A layer that counts the examples it has seen."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = Linear((3,), (1,), ("embed", "mlp"), rngs=rngs)
        self.seen = nnx.Variable(jnp.zeros((), jnp.int32))


def counting_loss(model: Any, batch: Any, *, key: jax.Array, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    model.seen.set_value(model.seen.get_value() + batch["x"].shape[0])
    return jnp.mean(model.linear(batch["x"]) ** 2), {"seen": model.seen.get_value()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_other_variables_are_updated_saved_and_restored(accumulate: int, tmp_path: Path) -> None:
    mesh = make_mesh(data=1)
    program = Program(lambda key: Counted(nnx.Rngs(key)), optax.sgd(0.1), mesh, seed=0, accumulate=accumulate)
    step, state = program.step({"toy": (counting_loss, 1.0)}), program.init()
    batch = {"x": np.ones((8, 3), np.float32) if accumulate == 1 else np.ones((accumulate, 4, 3), np.float32)}
    with jax.set_mesh(mesh):
        for _ in range(3):
            state, _ = step(state, {"toy": batch})
    assert int(program.model(state).seen.get_value()) == 24
    mark = save(tmp_path, state)
    checkpoints = Checkpoints(tmp_path)
    restored, _, found = checkpoints.restore(program.abstract_state())
    checkpoints.close()
    assert found == mark
    same_bits(restored, state)
    with jax.set_mesh(mesh):
        restored, metrics = step(restored, {"toy": batch})
    assert int(program.model(restored).seen.get_value()) == 32
    assert float(metrics["toy"]["seen"]) == (32 if accumulate == 1 else 30)  # the mean over micro-batches
