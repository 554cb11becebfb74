"""The table of docs/scaling.md: the papers' recipes compiled for slices of TPUs, and compile time by depth.

python benchmarks/scaling.py            # every row; needs libtpu, but no TPU
python benchmarks/scaling.py gpt vit    # rows whose name begins so
python benchmarks/scaling.py depth
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import launch  # noqa: E402
from unimodal import plan  # noqa: E402
from unimodal.errors import UsageError  # noqa: E402

# name: recipe, size, task and rows of a batch on each chip, topologies, other fields
ROWS: dict[str, tuple[str, str, str, int, tuple[str, ...], dict[str, Any]]] = {
    "gpt2-124m": ("gpt", "paper", "gpt", 8, ("v5e:4x4", "v5e:16x16", "v6e:16x16"), {}),
    "gpt2-1.5b": ("gpt", "paper_xl", "gpt", 8, ("v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8"), {}),
    "llama-7b": ("llama", "7b", "gpt", 4, ("v5e:16x16", "v6e:16x16", "v5p:8x8x8", "v5p:16x16x16"), {}),
    "vit-b16": ("vit", "paper", "vit", 32, ("v5e:4x4", "v5e:16x16", "v6e:16x16"), {}),
    "vit-l16": ("vit", "paper_large", "vit", 32, ("v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8"), {}),
    "clip-b16": ("clip", "paper", "clip", 64, ("v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8"), {}),
    "wav2vec2-base": ("wav2vec2", "paper", "wav2vec2", 4, ("v5e:4x4", "v5e:16x16", "v6e:16x16"), {}),
}
HEAD = ("| model | topology | rows a chip | HBM a chip: arguments + temporaries = total of capacity | "
        "TFLOP a chip-step: model, compiled | collectives, GB | at best; MFU at most | compiled in |")  # fmt: skip


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
    given = {f"tasks.{task}.batch_size": rows * chips, "mesh.data": 1, "mesh.fsdp": -1, **fields}
    said: list[str] = []
    try:
        found = plan.run_plan(config(recipe, size, **given), launch.task_class, topology=topology, say=said.append)
    except UsageError as error:
        return f"| {name} | {topology} | {rows} | {error} | | | | |"
    memory, bound = found.memory, found.bound
    gib = [f"{size / 2**30:.2f}" for size in (memory.arguments, memory.temporaries, memory.total, memory.capacity or 0)]
    sent = ", ".join(f"{kind} {c.bytes / 1e9:.2f}" for kind, c in sorted(found.collectives.items()))
    best = "" if bound is None else f"{bound.seconds:.3f} s, {bound.binds}; {bound.mfu:.0%}"
    flops = f"{found.model_flops / 1e12:.2f}, {(found.flops + found.hidden_flops) / 1e12:.2f}"
    fits = f"{gib[0]} + {gib[1]} = {gib[2]} of {gib[3]} GiB"
    return f"| {name} | {topology} | {rows} | {fits} | {flops} | {sent} | {best} | {found.seconds:.0f} s |"


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
    print(f"\n{HEAD}\n|{'---|' * 8}")
    for name, (*_, topologies, _) in ROWS.items():
        for topology in topologies:
            label = f"{name}@{topology}"
            if not wanted or any(label.startswith(word) for word in wanted):
                print(row(name, topology), flush=True)


if __name__ == "__main__":
    began = time.perf_counter()
    main(sys.argv[1:])
    print(f"\n{time.perf_counter() - began:.0f} s in all")
