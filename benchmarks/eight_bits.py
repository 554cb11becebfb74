"""Products in eight bits beside qwix's, as a TPU's compiler makes them, and the losses of runs beside one another.

pip install qwix==0.1.8 && python benchmarks/eight_bits.py qwix
pip install libtpu && python benchmarks/eight_bits.py tpu --chip=v5e --kind=int8
python benchmarks/eight_bits.py curves runs/none runs/int8 runs/float8
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from unimodal.plan.count import eight_bit_flops, flops
from unimodal.plan.hlo import parse
from unimodal.quantization import FORMATS, product

SHAPES = [((4, 33, 64), (64, 256), 1), ((4, 33, 4, 16), (4, 16, 64), 2), ((4, 33, 64), (64, 4, 16), 1)]


def pulled(run: Any, x: Any, w: Any, g: Any) -> tuple[jax.Array, ...]:
    """y, dx and dW."""
    y, pull = jax.vjp(run, x, w)
    return y, *pull(g)


def beside_qwix() -> None:
    """Largest difference of y, dx and dW from qwix's, and how far both are from float32 (root mean squares)."""
    from qwix._src.core import numerics
    from qwix._src.core.dot_general_qt import DotGeneralQtConfig, dot_general_qt

    bound = numerics.get_symmetric_bound
    draw = np.random.default_rng(0).standard_normal
    print(
        "| kind, largest int8 of qwix | x, W | differs by, of the largest: y, dx, dW | off float32: y, dx | qwix: y, dx |"
    )
    for kind, form in FORMATS.items():
        formats = dict(lhs_qtype=form.values, rhs_qtype=form.values, dlhs_residual_qtype=form.values)
        config = DotGeneralQtConfig(**formats, dlhs_grad_qtype=form.gradients, use_original_residuals=True)
        for largest in (127.5, 127.0) if kind == "int8" else (None,):
            numerics.get_symmetric_bound = bound if largest is None else lambda _, largest=largest: largest
            for x_shape, w_shape, inputs in SHAPES:
                x, w = (jnp.asarray(draw(shape), jnp.float32) for shape in (x_shape, w_shape))
                g = jnp.asarray(draw((*x_shape[:-inputs], *w_shape[inputs:])), jnp.float32)
                numbers = ((tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))), ((), ()))
                ours = pulled(lambda x, w, n=inputs, kind=kind: product(x, w, n, kind), x, w, g)
                theirs = pulled(lambda x, w, d=numbers, c=config: dot_general_qt(x, w, d, c), x, w, g)
                exact = pulled(lambda x, w, d=numbers: jax.lax.dot_general(x, w, d), x, w, g)
                apart = ", ".join(
                    f"{jnp.abs(a - b).max() / jnp.abs(b).max():.0e}" for a, b in zip(ours, theirs, strict=True)
                )
                off = [
                    ", ".join(
                        f"{jnp.linalg.norm(a - b) / jnp.linalg.norm(b):.4f}"
                        for a, b in zip(some[:2], exact, strict=False)
                    )
                    for some in (ours, theirs)
                ]
                print(f"| {kind}, {largest} | {x_shape}, {w_shape} | {apart} | {off[0]} | {off[1]} |")
    numerics.get_symmetric_bound = bound


def compiled(chip: str, kind: str) -> None:
    """The products that a compiler for a TPU makes of one layer's forward and backward pass, with their operands' types."""
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2").devices[0]
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=SingleDeviceSharding(device))
        for shape in ((8192, 768), (768, 3072), (8192, 3072))
    ]
    run = jax.jit(lambda x, w, g: pulled(lambda x, w: product(x, w, 1, kind), x, w, g))
    program = parse(run.lower(*shapes).compile().as_text())
    for computation in program.computations.values():
        for found in computation.instructions.values():
            if found.opcode in ("convolution", "dot"):
                kinds = [computation.operand(found, i).kind for i in (0, 1)]
                print(f"{kinds[0]} · {kinds[1]} → {found.shapes[0].kind}{list(found.shapes[0].dimensions)}")
    print({k: f"{n / 1e9:.1f} GFLOP" for k, n in eight_bit_flops(program).items()}, f"of {flops(program)[0] / 1e9:.1f}")


def curves(runs: list[Path], steps: list[int]) -> None:
    """Mean loss of the 25 steps up to each, and over the last 100 steps the mean difference from the first run."""
    first: dict[int, float] = {}
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
        loss = {row["step"]: row["loss"] for row in rows if "gradient_norm" in row}
        first = first or loss
        means = [f"{np.mean([loss[s] for s in range(step - 24, step + 1)]):.3f}" for step in steps if step in loss]
        both = sorted(loss.keys() & first.keys())[-100:]
        off = np.asarray([loss[s] - first[s] for s in both])
        print(f"| {run.name} | {' | '.join(means)} | {off.mean():+.3f} ± {off.std() / len(off) ** 0.5:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("qwix", "tpu", "curves"))
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--chip", default="v5e")
    parser.add_argument("--kind", default="int8", choices=tuple(FORMATS))
    parser.add_argument("--steps", default="50,100,200,300")
    a = parser.parse_args()
    if a.what == "qwix":
        beside_qwix()
    elif a.what == "tpu":
        compiled(a.chip, a.kind)
    else:
        curves(a.runs, [int(step) for step in re.findall(r"\d+", a.steps)])


if __name__ == "__main__":
    main()
