"""The table of docs/scaling.md: the papers' recipes compiled for slices of TPUs, and compile time by depth.

python benchmarks/scaling.py            # every row; needs libtpu, but no TPU
python benchmarks/scaling.py gpt vit    # rows whose name begins so
python benchmarks/scaling.py "vit-b16 without dropout"
python benchmarks/scaling.py depth
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import launch  # noqa: E402
from unimodal import plan  # noqa: E402
from unimodal.errors import UsageError  # noqa: E402

# name: recipe, size, task, rows of a batch on each chip, topologies, other fields
ROWS: dict[str, tuple[str, str, str, int, tuple[str, ...], dict[str, Any]]] = {
    "gpt2-124m": ("gpt", "paper", "gpt", 8, ("v5e:4x4", "v5e:16x16", "v6e:16x16"), {}),
    "gpt2-124m, full remat": ("gpt", "paper", "gpt", 8, ("v5e:4x4",), {"backbones.shared.remat": "full"}),
    "gpt2-1.5b": ("gpt", "paper_xl", "gpt", 8, ("v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8"), {}),
    "llama-7b": ("llama", "7b", "gpt", 4, ("v5e:16x16", "v6e:16x16", "v5p:8x8x8", "v5p:16x16x16"), {}),
    "llama-7b, tensor=8": ("llama", "7b", "gpt", 1, ("v5e:16x16",), {"mesh.fsdp": 32, "mesh.tensor": 8}),
    "vit-b16": ("vit", "paper", "vit", 32, ("v5e:4x4", "v5e:16x16", "v6e:16x16"), {}),
    "vit-l16": ("vit", "paper_large", "vit", 32, ("v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8"), {}),
    "clip-b16": ("clip", "paper", "clip", 64, ("v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8"), {}),
    "wav2vec2-base": ("wav2vec2", "paper", "wav2vec2", 4, ("v5e:4x4", "v5e:16x16", "v6e:16x16"), {}),
}
# Short rows, by what attends and what the backward pass keeps of each layer.
SHORT = [(kernel, remat) for kernel in ("splash", "xla", "lean") for remat in ("none", "dots", "light")]
for kernel, remat in SHORT:
    chosen = {"backbones.shared.attention": kernel, "backbones.shared.remat": remat}
    alike = {"mesh.data": 16, "mesh.fsdp": 1, "backbones.shared.dropout": 0.0}
    ROWS[f"vit-b16 without dropout, {kernel} and {remat}"] = ("vit", "paper", "vit", 64, ("v5e:4x4",), alike | chosen)
HEAD = ("| model, rows a chip | topology, mesh | HBM a chip: arguments + temporaries = total | TFLOP a chip-step: model, compiled "
        "| collectives, GB | splash kernels | large and replicated | at best; MFU at most | compiled in |")  # fmt: skip
LARGEST_FSDP = 512  # beyond, batches are split by `data` as well, so that no parameter is cut too fine


def config(recipe: str, size: str, **fields: Any) -> dict[str, Any]:
    """A recipe as nested dictionaries; `fields` by dotted names."""
    plain = launch.as_plain(importlib.import_module(f"configs.{recipe}").get_config(f"size={size}"))
    for name, value in fields.items():
        *path, last = name.split(".")
        place = plain
        for part in path:
            place = place[part]
        place[last] = value
    return plain


def row(name: str, topology: str) -> str:
    recipe, size, task, rows, _, fields = ROWS[name]
    chips = len(plan.open_topology(topology).devices)
    whole = config(recipe, size)
    # As much fsdp as divides every backbone's width; what remains of the chips splits the batch alone.
    fsdp = math.gcd(chips, LARGEST_FSDP, *(backbone["width"] for backbone in whole["backbones"].values()))
    given = {f"tasks.{task}.batch_size": rows * chips, "mesh.data": -1, "mesh.fsdp": fsdp, **fields}
    label, said = f"{name}, {rows}", []
    try:
        given = config(recipe, size, **given)
        found = plan.run_plan(given, launch.task_class, topology=topology, say=said.append)
    except UsageError as error:
        return f"| {label} | {topology} | {error} | | | | | | |"
    memory, bound, mesh = found.memory, found.bound, found.mesh
    where = f"{topology}, {' '.join(f'{axis}={size}' for axis, size in mesh.items() if size > 1)}"
    gib = [size / 2**30 for size in (memory.arguments, memory.temporaries, memory.total, memory.capacity or 0)]
    sent = ", ".join(f"{kind} {c.bytes / 1e9:.2f}" for kind, c in sorted(found.collectives.items()) if c.bytes >= 5e6)
    best = "" if bound is None else f"{bound.seconds:.3f} s, {bound.binds}; {bound.mfu:.0%}"
    flops = f"{found.model_flops / 1e12:.2f}, {(found.flops + found.hidden_flops) / 1e12:.2f}"
    hbm = f"{gib[0]:.2f} + {gib[1]:.2f} = {gib[2]:.2f} of {gib[3]:.2f} GiB"
    splash = sum(count for kernel, count in found.kernels.items() if "splash" in kernel)
    large = ", ".join(found.replicated) or "none"
    return f"| {label} | {where} | {hbm} | {flops} | {sent} | {splash} | {large} | {best} | {found.seconds:.0f} s |"


def depth_rows() -> None:
    """HLO and seconds of a scanned GPT of 12, 24 and 48 layers."""
    print("| layers | HLO, MB | compiled in |\n|---|---|---|")
    for depth in (12, 24, 48):
        given = {"backbones.shared.depth": depth, "tasks.gpt.batch_size": 8, "mesh.data": 1, "mesh.fsdp": 4}
        plain = config("gpt", "small", **given, **{"tasks.gpt.encoder": "bytes"})
        found = plan.run_plan(plain, launch.task_class, topology="v5e:2x2", say=lambda text: None)
        print(f"| {depth} | {found.program_bytes / 1e6:.2f} | {found.seconds:.0f} s |", flush=True)


def main(wanted: list[str]) -> None:
    if not wanted or "depth" in wanted:
        depth_rows()
    print(f"\n{HEAD}\n|{'---|' * 9}")
    for name, (*_, topologies, _) in ROWS.items():
        for topology in topologies:
            label = f"{name}@{topology}"
            if not wanted or any(label.startswith(word) for word in wanted):
                print(row(name, topology), flush=True)


if __name__ == "__main__":
    began = time.perf_counter()
    main(sys.argv[1:])
    print(f"\n{time.perf_counter() - began:.0f} s in all")
