"""Training-step time of the GPT and ViT tasks beside a plain torch twin, alternating in one run.

    pip install torch==2.13.0   # beside unimodal
    python benchmarks/step_time.py [--width=512 --depth=6 --rounds=5]

Both do forward, backward and AdamW in float32 on the same shapes. The twin is torch's own TransformerEncoder layers'
arithmetic written with scaled_dot_product_attention, eager and (with --compile) through torch.compile.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Twin(nn.Module):
    """The same transformer in torch: a byte language model, or a patch classifier."""

    def __init__(self, kind: str, width: int, depth: int, heads: int, length: int):
        super().__init__()
        self.kind = kind
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.places = nn.LayerNorm(width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.table = nn.Embedding(264, width) if kind == "gpt" else nn.Linear(192, width)
        self.head = nn.Linear(width, 9)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.table(x) + self.places
        for block in self.blocks:
            h = block(h, self.kind == "gpt")
        h = self.norm(h)
        if self.kind == "gpt":
            logits = h @ self.table.weight.T
            return F.cross_entropy(logits[:, :-1].reshape(-1, 264), y[:, 1:].reshape(-1))
        return F.cross_entropy(self.head(h.mean(1)), y, label_smoothing=0.1)


def torch_step(kind: str, a: argparse.Namespace) -> Callable[[], float]:
    torch.manual_seed(0)
    length = a.length if kind == "gpt" else 16
    twin = Twin(kind, a.width, a.depth, a.width // 64, length)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4, foreach=True)
    if kind == "gpt":
        x = y = torch.randint(8, 264, (a.gpt_batch, length))
    else:
        x, y = torch.randn(a.vit_batch, length, 192), torch.randint(0, 9, (a.vit_batch,))
    loss = torch.compile(twin.loss) if a.compile else twin.loss

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss(x, y)
        value.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        return value.item()

    return step


def our_step(kind: str, a: argparse.Namespace) -> Callable[[], float]:
    import sys

    sys.path.insert(0, str(ROOT))
    from launch import task_class
    from unimodal.experiment import build
    from unimodal.training.loop import to_device

    tasks = {"gpt": dict(batch_size=a.gpt_batch, length=a.length), "vit": dict(batch_size=a.vit_batch)}
    config: dict[str, Any] = dict(
        steps=100,
        backbones=dict(shared=dict(width=a.width, depth=a.depth, heads=a.width // 64, activation="gelu_tanh")),
        tokenizers=dict(
            text=dict(vocabulary=264, max_length=a.length), image=dict(image_size=(32, 32), patch=8, registers=0)
        ),
        tasks={kind: tasks[kind]},
    )
    experiment = build(config, task_class, fake_data=True)
    task, program = experiment.tasks[0], experiment.program
    with jax.set_mesh(program.mesh):
        state = program.init()
        compiled = program.step({kind: (task.loss, 1.0)})
        batch = {kind: to_device(next(experiment.train_batches(task)), program)}

    def step() -> float:
        nonlocal state
        with jax.set_mesh(program.mesh):
            state, metrics = compiled(state, batch)
        return float(metrics[kind]["loss"])

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (
        ("width", 512),
        ("depth", 6),
        ("rounds", 5),
        ("length", 256),
        ("gpt_batch", 4),
        ("vit_batch", 32),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--compile", action="store_true")
    a = parser.parse_args()
    for kind in ("gpt", "vit"):
        steps = {"unimodal": our_step(kind, a), "torch": torch_step(kind, a)}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step(), step()
        for _ in range(a.rounds):
            for name, step in steps.items():
                began = time.perf_counter()
                assert np.isfinite(step())
                times[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(found) for name, found in times.items()}
        ratios = sorted(u / t for u, t in zip(times["unimodal"], times["torch"], strict=True))
        print(
            f"{kind}: unimodal {medians['unimodal'] * 1e3:.0f} ms, torch {medians['torch'] * 1e3:.0f} ms, "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
