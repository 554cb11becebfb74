"""Value and gradient of a backbone on a CPU, with and without memory in pages of 2 MB, in processes of their own, in turns.

python benchmarks/huge_pages.py
python benchmarks/huge_pages.py --rounds=5 --width=256 --settings="remat=none attention=lean; remat=light attention=xla"
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"usual": "", "2 MB": "glibc.malloc.hugetlb=1"}
SETTINGS = "remat=none attention=xla; remat=none attention=lean; remat=light attention=xla"


def one(given: argparse.Namespace) -> float:
    """Time this process's own median, in milliseconds."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from unimodal import Backbone, BackboneConfig
    from unimodal.tokens import tokens

    options = dict(word.split("=") for word in given.settings.split())
    config = BackboneConfig(width=given.width, depth=4, heads=4, **options)  # pyright: ignore[reportArgumentType]
    backbone = Backbone(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (given.batch, given.length, given.width))
    step = jax.jit(jax.grad(lambda backbone, x: jnp.sin(backbone(tokens(x, causal=True))[0]).sum(), argnums=(0, 1)))
    times = []
    for _ in range(given.steps + 2):
        began = time.perf_counter()
        jax.block_until_ready(step(backbone, x))
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=SETTINGS, help="fields of the backbone, divided by semicolons")
    for name, default in dict(rounds=3, width=128, length=128, batch=16, steps=15).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        print(one(given))
        return
    times: dict[tuple[str, str], list[float]] = {}
    sizes = [f"--{name}={getattr(given, name)}" for name in ("width", "length", "batch", "steps")]
    for _ in range(given.rounds):
        for settings in given.settings.split("; "):
            for pages, tunables in PAGES.items():
                line = [sys.executable, __file__, "--alone", f"--settings={settings}", *sizes]
                environment = {
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "GLIBC_TUNABLES": tunables,
                    "PYTHONPATH": str(ROOT),
                }
                times.setdefault((settings, pages), []).append(
                    float(subprocess.check_output(line, env=environment, text=True))
                )
                print(f"{settings}, {pages}: {times[settings, pages][-1]:.1f} ms", file=sys.stderr, flush=True)
    print("| backbone | pages | ms: median (range) |\n|---|---|---|")
    for (settings, pages), found in times.items():
        print(f"| {settings} | {pages} | {statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f}) |")


if __name__ == "__main__":
    main()
