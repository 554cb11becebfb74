"""The kernels of attention on this machine's device: values and gradients against the plain one in float32, and their time.

python benchmarks/kernels_agree.py                    # a GPU or TPU, bfloat16
python benchmarks/kernels_agree.py --length=64 --heads=2 --kernels=lean,blockwise     # anywhere
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from unimodal.attention import attention  # noqa: E402
from unimodal.errors import UsageError  # noqa: E402
from unimodal.tokens import Layout, Span  # noqa: E402

FUSED = {"gpu": ("cudnn",), "tpu": ("splash",)}


def cases(T: int) -> dict[str, tuple[Layout, str, dict[str, Any]]]:
    """Name → layout, segments ("", "padded" at the end, "packed"), further options."""
    return {
        "all": ((Span(T),), "", {}),
        "causal": ((Span(T, True),), "", {}),
        "causal, window": ((Span(T, True),), "", dict(window=T // 4)),
        "all, padded": ((Span(T),), "padded", dict(right_padded=True)),
        "causal, padded": ((Span(T, True),), "padded", dict(right_padded=True)),
        "causal, packed": ((Span(T, True),), "packed", {}),
        "both": ((Span(T // 2), Span(T - T // 2, True)), "", {}),
    }


def segments(kind: str, rows: int, T: int) -> jax.Array | None:
    place = jnp.arange(T)[None]
    if kind == "padded":
        lengths = jnp.asarray(np.linspace(T // 3, T, rows), jnp.int32)[:, None]
        return (place < lengths).astype(jnp.int32)
    return jnp.broadcast_to(1 + place // (T // 2), (rows, T)).astype(jnp.int32) if kind == "packed" else None


def step(kernel: str, layout: Layout, segment: jax.Array | None, options: dict[str, Any]) -> Any:
    """Result and gradients under a fixed cotangent, which is zero at padding."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, above: jax.Array) -> Any:
        attend = partial(attention, layout=layout, segment=segment, implementation=kernel, **options)
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v), q, k, v)
        return out, *back(above.astype(out.dtype))

    return jax.jit(run)


def milliseconds(function: Any, given: Any, rounds: int = 10) -> float:
    jax.block_until_ready(function(*given))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(function(*given))
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    platform = jax.default_backend()
    parser.add_argument("--kernels", default=",".join((*FUSED.get(platform, ()), "lean", "blockwise", "xla")))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--dtype", default="float32" if platform == "cpu" else "bfloat16")
    given = parser.parse_args()
    shape = given.rows, given.length, given.heads, given.head_size
    arrays = [jax.random.normal(key, shape, jnp.float32) for key in jax.random.split(jax.random.key(0), 4)]
    print(f"{jax.devices()[0].device_kind}, {given.dtype}, [B,T,H,K] = {list(shape)}; error: the largest, over the largest "
          "entry of the float32 result\n\n| sees | kernel | error of out | of dq | of dk | of dv | ms |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for name, (layout, kind, options) in cases(given.length).items():
        segment = segments(kind, given.rows, given.length)
        real = jnp.ones(shape[:2], bool) if segment is None else segment != 0
        masked = [*arrays[:3], jnp.where(real[:, :, None, None], arrays[3], 0.0)]
        with jax.default_matmul_precision("highest"):
            wanted = step("xla", layout, segment, options)(*masked)
        for kernel in given.kernels.split(","):
            function = step(kernel, layout, segment, options)
            low = [x.astype(given.dtype) for x in masked]
            try:
                found = function(*low)
                time_taken = milliseconds(function, low)
            except (UsageError, RuntimeError, NotImplementedError, ValueError) as error:
                print(
                    f"| {name} | {kernel} | {' '.join(str(error).split())[:120].replace('|', '/')} | | | | |",
                    flush=True,
                )
                continue
            keep = real[:, :, None, None]
            errors = [
                float(
                    jnp.abs(jnp.where(keep, a.astype(jnp.float32) - b, 0)).max() / jnp.abs(jnp.where(keep, b, 0)).max()
                )
                for a, b in zip(found, wanted, strict=True)
            ]
            print(f"| {name} | {kernel} | {' | '.join(f'{e:.1e}' for e in errors)} | {time_taken:.2f} |", flush=True)


if __name__ == "__main__":
    main()
