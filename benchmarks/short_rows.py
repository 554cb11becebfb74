"""The kernels `lean` and `splash` on TPUs, by the length of rows: what one layer's step moves and computes. Needs libtpu, no TPU.

python benchmarks/short_rows.py                       # TPU v5e, heads of 64 and of 128
python benchmarks/short_rows.py --lengths=197,577 --heads=12 --width=768
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from unimodal.backbone import Backbone, BackboneConfig  # noqa: E402
from unimodal.plan.count import flops, traffic  # noqa: E402
from unimodal.plan.hlo import parse  # noqa: E402
from unimodal.plan.topology import Topology, open_topology  # noqa: E402
from unimodal.sharding import batch_sharding, make_mesh, shardings  # noqa: E402
from unimodal.tokens import tokens  # noqa: E402

TOKENS = 16_384  # of a chip, about


def compiled(where: Topology, length: int, causal: bool, attention: str, given: argparse.Namespace) -> Any:
    """Compile value and gradient of two layers, the batch in pieces over all chips."""
    config = BackboneConfig(
        width=given.width, depth=2, heads=given.heads, dtype="bfloat16", attention=attention, remat=given.remat
    )
    mesh = make_mesh(data=len(where.devices), devices=where.devices)
    model = jax.eval_shape(lambda: Backbone(config, rngs=nnx.Rngs(0)))
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), model, shardings(model, mesh)
    )
    rows = max(1, TOKENS // length) * len(where.devices)
    x = jax.ShapeDtypeStruct((rows, length, given.width), jnp.bfloat16, sharding=batch_sharding(mesh))

    def loss(model: Backbone, x: jax.Array) -> jax.Array:
        return model(tokens(x, causal=causal))[0].astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(placed, x).compile()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--lengths", default="128,197,256,320,384,512,577,779,1024")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--sees", default="all,causal", help="all, causal or both")
    parser.add_argument("--remat", default="light")
    given = parser.parse_args()
    where = open_topology(given.topology)
    chip = where.chip
    assert chip.flops and chip.bandwidth
    print("| tokens, heads of | sees | kernel | compute, ms | HBM, ms | temporaries, MiB |\n|---|---|---|---|---|---|")
    for length in map(int, given.lengths.split(",")):
        for sees in given.sees.split(","):
            for attention in ("lean", "splash"):
                program = compiled(where, length, sees == "causal", attention, given)
                read, memory = parse(program.as_text()), program.memory_analysis()
                compute = sum(flops(read)) / chip.flops * 1e3
                moved = traffic(read) / chip.bandwidth * 1e3
                size, held = given.width // given.heads, memory.temp_size_in_bytes / 2**20
                print(
                    f"| {length}, {size} | {sees} | {attention} | {compute:.2f} | {moved:.2f} | {held:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
