"""What long inputs cost in memory: attention in one piece and as a ring, the vocabulary loss in one piece and in chunks.

python benchmarks/long_inputs.py [--lengths=8192,32768,131072] [--topology=v5e:2x4]

Compiles forward and backward ahead of time, for eight simulated CPU devices or, with --topology and libtpu, for a TPU
slice of eight chips that need not be there, and prints the temporary memory of one device as XLA plans it. Nothing runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from unimodal.attention import attention
from unimodal.objectives import causal_lm, chunked_causal_lm
from unimodal.sharding import copied, make_mesh
from unimodal.tokens import Span

HEADS, HEAD_SIZE, WIDTH, VOCABULARY, CHUNK = 8, 64, 768, 50_257, 256


def attend(length: int, implementation: str, window: int | None = None) -> Callable[..., jax.Array]:
    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        layout = (Span(length, causal=True),)
        out = attention(q, k, v, layout, window=window, implementation=implementation)
        return jnp.square(out.astype(jnp.float32)).sum()

    return jax.grad(total, argnums=(0, 1, 2))


def loss(chunk: int) -> Callable[..., jax.Array]:
    def total(hidden: jax.Array, table: jax.Array, ids: jax.Array) -> jax.Array:
        if chunk:
            kernel = copied(table.T, hidden.shape[0], "embed", "vocabulary", dtype=hidden.dtype)
            _, sums = chunked_causal_lm(hidden, kernel, ids, chunk=chunk)
        else:
            _, sums = causal_lm(jnp.einsum("btd,vd->btv", hidden, table.astype(hidden.dtype)), ids)
        return sums["objective"]

    return jax.grad(total, argnums=(0, 1))


def temporary(function: Callable[..., Any], arrays: list[Any], mesh: Any) -> str:
    """Bytes of one device as GiB, or the compiler's refusal."""
    with jax.set_mesh(mesh):
        try:
            memory: Any = jax.jit(function).lower(*arrays).compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                return "does not fit"
            raise
    return f"{memory.temp_size_in_bytes / 2**30:,.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="8192,32768,131072")
    parser.add_argument("--topology", help="of eight chips, such as v5e:2x4")
    options = parser.parse_args()
    lengths = [int(length) for length in options.lengths.split(",")]
    if options.topology:
        devices = topologies.get_topology_desc(options.topology, platform="tpu").devices
    else:
        jax.config.update("jax_num_cpu_devices", 8)
        devices = jax.devices()
    ring, one = make_mesh(data=1, sequence=8, devices=devices), make_mesh(data=1, devices=devices[:1])

    def qkv(length: int, mesh: Any) -> list[Any]:
        place = NamedSharding(mesh, PartitionSpec(None, "sequence"))
        return [jax.ShapeDtypeStruct((1, length, HEADS, HEAD_SIZE), jnp.bfloat16, sharding=place)] * 3

    def states(length: int, mesh: Any) -> list[Any]:
        place, whole = NamedSharding(mesh, PartitionSpec(None, "sequence")), NamedSharding(mesh, PartitionSpec())
        return [
            jax.ShapeDtypeStruct((1, length, WIDTH), jnp.bfloat16, sharding=place),
            jax.ShapeDtypeStruct((VOCABULARY, WIDTH), jnp.float32, sharding=whole),
            jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=place),
        ]

    rows: list[tuple[str, Any, Callable[[int], Callable[..., Any]], Callable[..., list[Any]]]] = [
        ("attention, one device, plain", one, lambda n: attend(n, "xla"), qkv),
        ("attention, one device, blockwise", one, lambda n: attend(n, "blockwise"), qkv),
        ("attention, one device, blockwise, window 1024", one, lambda n: attend(n, "blockwise", 1024), qkv),
        ("attention, sequence=8, plain", ring, lambda n: attend(n, "xla"), qkv),
        ("attention, sequence=8, ring", ring, lambda n: attend(n, "ring"), qkv),
        ("attention, sequence=8, all-to-all", ring, lambda n: attend(n, "ulysses"), qkv),
        ("loss, one device, plain", one, lambda n: loss(0), states),
        (f"loss, one device, chunks of {CHUNK}", one, lambda n: loss(CHUNK), states),
        ("loss, sequence=8, plain", ring, lambda n: loss(0), states),
        (f"loss, sequence=8, chunks of {CHUNK}", ring, lambda n: loss(CHUNK), states),
    ]
    print(f"| GiB of one device | {' | '.join(f'{n:,}' for n in lengths)} |")
    print(f"|---|{'---|' * len(lengths)}")
    for name, mesh, function, arrays in rows:
        found = [temporary(function(n), arrays(n, mesh), mesh) for n in lengths]
        print(f"| {name} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
