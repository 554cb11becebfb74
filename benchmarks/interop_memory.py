"""How much memory reading a checkpoint takes, beside the size of its file.

    python benchmarks/interop_memory.py [--megabytes=400] [--width=1024]

Writes a Llama-shaped checkpoint of random float32 numbers, then reads it in fresh processes: onto one device, onto eight
simulated ones with fsdp=8, as bfloat16, and, where torch and transformers are installed, with theirs. Prints the peak
resident memory above that of the process before reading, and what each device holds. All simulated devices share the
memory of one process, so a whole copy is the least that the process can take; the rest is what reading needs besides.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

MIB = 2**20


def make(directory: Path, megabytes: int, width: int) -> int:
    """A checkpoint of about so many MiB; returns its size in bytes."""
    from unimodal.interop.files import SINGLE, write_file

    mlp, vocabulary = 3 * width, 8 * width
    layer = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
    layer |= {"mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width), "mlp.down_proj": (width, mlp)}
    layer |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    per_layer = 4 * sum(map(math.prod, layer.values()))
    depth = max(1, round((megabytes * MIB - 8 * vocabulary * width) / per_layer))
    config = dict(
        model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=width, num_hidden_layers=depth, vocab_size=vocabulary,
        num_attention_heads=width // 64, intermediate_size=mlp, tie_word_embeddings=False, max_position_embeddings=2048,
        rms_norm_eps=1e-5, hidden_act="silu", dtype="float32",
    )  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(depth) for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(shape, np.float32) / width**0.5 for shape in shapes.values())
    write_file(directory / SINGLE, {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}, values)
    return (directory / SINGLE).stat().st_size


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes: VmHWM is the peak, VmRSS what is resident now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def forget_peak() -> None:
    """From now on VmHWM counts afresh."""
    Path("/proc/self/clear_refs").write_text("5")


def read(directory: Path, how: str) -> dict[str, float]:
    """In a process of its own: what reading takes."""
    if how == "transformers":
        import torch
        import transformers

        transformers.logging.disable_progress_bar()
        torch.zeros(4) @ torch.zeros(4)
        forget_peak()
        before, start = memory("VmRSS"), time.perf_counter()
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        sum(float(p.sum()) for p in model.parameters())  # it may have mapped the file without reading it
        return dict(peak=memory("VmHWM") - before, seconds=time.perf_counter() - start, device=0, largest=0)
    import jax

    devices = 8 if how == "fsdp=8" else 1
    jax.config.update("jax_num_cpu_devices", devices)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    from unimodal.interop import load_huggingface
    from unimodal.sharding import make_mesh

    mesh = make_mesh(data=1, fsdp=8) if devices == 8 else None
    forget_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    model = load_huggingface(directory, mesh=mesh, dtype="bfloat16" if how == "bfloat16" else None)
    jax.block_until_ready(model)
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    held: Counter[object] = Counter()
    for leaf in jax.tree.leaves(model):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    shards = (shard.data.nbytes for leaf in jax.tree.leaves(model) for shard in leaf.addressable_shards)
    return dict(peak=peak, seconds=seconds, device=max(held.values()), largest=max(shards))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(Path(arguments.read[0]), arguments.read[1])))
        return
    with tempfile.TemporaryDirectory() as name:
        size = make(Path(name), arguments.megabytes, arguments.width)
        print(f"file: {size / MIB:.0f} MiB\n")
        print("| read | peak above start (MiB) | of the file | per device (MiB) | largest piece (MiB) | seconds |")
        print("|---|---|---|---|---|---|")
        for how in ("one device", "fsdp=8", "bfloat16", "transformers"):
            command = [sys.executable, __file__, "--read", name, how]
            environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                print(f"| {how} | {done.stderr.strip().splitlines()[-1]} |")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            device, largest = (
                "" if how == "transformers" else f"{found[key] / MIB:.1f}" for key in ("device", "largest")
            )
            peak = found["peak"]
            print(f"| {how} | {peak / MIB:.0f} | {peak / size:.2f} | {device} | {largest} | {found['seconds']:.1f} |")


if __name__ == "__main__":
    main()
