"""Loading, forward pass and training step of published shapes, beside Hugging Face transformers, alternating in one run.

    pip install torch transformers   # beside unimodal
    python benchmarks/interop_speed.py [--models=bert,gpt2,vit,wav2vec2] [--batch=4] [--rounds=7]
    python benchmarks/interop_speed.py --device=cuda --dtype=bfloat16 --batch=32   # jax[cuda13] and a CUDA torch

Each model is initialised at random by transformers, saved, and loaded by both, so that the weights and, as is checked,
the losses are the same. A training step is forward, backward and AdamW (torch's fused one) of a cross-entropy without
dropout. transformers runs as it comes (scaled_dot_product_attention) and through torch.compile. Times are medians over the
rounds after each program has run twice; what is compared is measured in turns, so that a machine that slows down does so for
all. At its turn each program runs once more before the call that counts, so that none pays for the memory that the other used.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the card is shared with torch

import jax
import numpy as np
import optax
import torch
import transformers as t
from timing import in_turns

from unimodal.interop import Pretrained, load_huggingface

RATE = 1e-4


@dataclass(frozen=True)
class Shape:
    """make(size) → a torch model; inputs(batch) → arrays by our names; classes: of the logits."""

    make: Callable[[dict[str, int]], Any]
    inputs: Callable[[np.random.Generator, int, int], dict[str, np.ndarray]]
    length: int
    argument: str


def ids(rng: np.random.Generator, batch: int, length: int) -> dict[str, np.ndarray]:
    return {"text": rng.integers(3, 30000, (batch, length)).astype(np.int32)}


def pixels(rng: np.random.Generator, batch: int, length: int) -> dict[str, np.ndarray]:
    return {"image": rng.standard_normal((batch, length, length, 3), np.float32)}


def waveform(rng: np.random.Generator, batch: int, length: int) -> dict[str, np.ndarray]:
    return {"audio": rng.standard_normal((batch, length), np.float32)}


def encoder(size: dict[str, int]) -> dict[str, int]:
    """Sizes by the names that most families use."""
    width = size["width"]
    return dict(
        hidden_size=width,
        num_hidden_layers=size["depth"],
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
    )


def gpt2(size: dict[str, int]) -> Any:
    heads = max(1, size["width"] // 64)
    return t.GPT2LMHeadModel(t.GPT2Config(n_embd=size["width"], n_layer=size["depth"], n_head=heads))


# The base size of each, with the head that it is published with.
SHAPES = {
    "bert": Shape(lambda size: t.BertForMaskedLM(t.BertConfig(**encoder(size))), ids, 128, "input_ids"),
    "gpt2": Shape(gpt2, ids, 256, "input_ids"),
    "vit": Shape(
        lambda size: t.ViTForImageClassification(t.ViTConfig(**encoder(size), num_labels=1000)),
        pixels,
        224,
        "pixel_values",
    ),
    "wav2vec2": Shape(
        lambda size: t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**encoder(size))), waveform, 32000, "input_values"
    ),
}


def finished(value: torch.Tensor) -> torch.Tensor:
    """The value, once its device has made it."""
    if value.device.type == "cuda":
        torch.cuda.synchronize()
    return value


class Theirs:
    """A torch model and its optimizer, as it comes or compiled."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor, *, compiled: bool):
        self.inputs, self.labels = inputs, labels
        self.model = model.eval()  # no dropout; gradients all the same
        self.call = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)

    def forward(self) -> torch.Tensor:
        with torch.no_grad():
            return finished(self.call(**self.inputs).logits)

    def step(self) -> torch.Tensor:
        logits = self.call(**self.inputs).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), self.labels.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return finished(loss.detach())


class Ours:
    """A loaded model and its optimizer, jitted."""

    def __init__(self, model: Pretrained, inputs: dict[str, jax.Array], labels: jax.Array):
        self.inputs, self.labels, self.model = inputs, labels, model
        optimizer = optax.adamw(RATE, weight_decay=0.01)
        self.state = jax.jit(optimizer.init)(model)

        def loss_of(model: Pretrained, inputs: dict[str, jax.Array], labels: jax.Array) -> jax.Array:
            logits = model(**inputs)["logits"].astype(np.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(model: Pretrained, state: Any, inputs: Any, labels: jax.Array) -> tuple[Pretrained, Any, jax.Array]:
            loss, gradients = jax.value_and_grad(loss_of)(model, inputs, labels)
            updates, state = optimizer.update(gradients, state, model)
            return optax.apply_updates(model, updates), state, loss  # pyright: ignore[reportReturnType]

        self._forward = jax.jit(lambda model, inputs: model(**inputs)["logits"])
        self._step = jax.jit(step, donate_argnums=(0, 1))

    def forward(self) -> jax.Array:
        return jax.block_until_ready(self._forward(self.model, self.inputs))

    def step(self) -> jax.Array:
        self.model, self.state, loss = self._step(self.model, self.state, self.inputs, self.labels)
        return jax.block_until_ready(loss)


def compare(name: str, options: argparse.Namespace) -> list[str]:
    """The rows of one model."""
    shape, device = SHAPES[name], options.device
    torch.manual_seed(0)
    made = shape.make(dict(width=options.width, depth=options.depth))
    kind, dtype = type(made), getattr(torch, options.dtype)
    with tempfile.TemporaryDirectory() as directory:
        made.save_pretrained(directory)
        megabytes = (Path(directory) / "model.safetensors").stat().st_size / 2**20
        print(
            f"{name}: {sum(p.numel() for p in made.parameters()) / 1e6:.0f}M parameters, {megabytes:.0f} MiB",
            flush=True,
        )
        del made

        def theirs() -> Any:
            model = kind.from_pretrained(directory, dtype=dtype).to(device)
            finished(sum(p.sum() for p in model.parameters()))  # it may have mapped the file without reading it
            return model

        def ours() -> Pretrained:
            return jax.block_until_ready(load_huggingface(directory, dtype=options.dtype))

        loads = in_turns({"ours": ours, "transformers": theirs}, options.rounds, settle=True)
        length = options.length if options.length and shape.inputs is ids else shape.length
        arrays = shape.inputs(np.random.default_rng(0), options.batch, length)
        model = ours()
        logits = jax.eval_shape(lambda model, inputs: model(**inputs)["logits"], model, arrays).shape
        labels = np.random.default_rng(1).integers(0, logits[-1], logits[:-1]).astype(np.int32)
        here = Ours(model, jax.device_put(arrays), jax.device_put(labels))
        there = {"eager": Theirs(theirs(), *to_torch(arrays, labels, shape, dtype, device), compiled=False)}
        if options.compile:
            there["compiled"] = Theirs(theirs(), *to_torch(arrays, labels, shape, dtype, device), compiled=True)
    rows = [row(name, "load", loads["ours"].median, [loads["transformers"].median, None])]
    runners: dict[str, Any] = {"ours": here, **there}
    difference = float("nan")
    for what in ("forward", "step"):
        calls = {key: getattr(value, what) for key, value in runners.items()}
        times = in_turns(calls, options.rounds, settle=True)
        print(f"    first calls: {', '.join(f'{key} {found.first:.1f} s' for key, found in times.items())}", flush=True)
        medians = {key: found.median for key, found in times.items()}
        rows.append(row(name, what, medians["ours"], [medians["eager"], medians.get("compiled")]))
        if what == "forward":  # before the weights change
            mine, other = np.asarray(here.forward(), np.float32), there["eager"].forward().float().cpu().numpy()
            difference = float(np.abs(mine - other).max())
    losses = {key: float(value.step()) for key, value in runners.items()}  # after as many steps each
    print(f"    logits differ by {difference:.1e}; losses now {', '.join(f'{k} {v:.5f}' for k, v in losses.items())}")
    return rows


def to_torch(
    arrays: dict[str, np.ndarray], labels: np.ndarray, shape: Shape, dtype: torch.dtype, device: str
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    (value,) = (torch.from_numpy(array) for array in arrays.values())
    value = value.permute(0, 3, 1, 2).contiguous() if value.ndim == 4 else value
    value = value.to(dtype) if value.is_floating_point() else value.long()
    return {shape.argument: value.to(device)}, torch.from_numpy(labels).long().to(device)


def row(name: str, what: str, ours: float, theirs: list[float | None]) -> str:
    times = [f"{1e3 * value:.0f}" if value else "" for value in (ours, *theirs)]
    ratios = [f"{ours / value:.2f}" if value else "" for value in theirs]
    return f"| {name} | {what} | {' | '.join([*times, *ratios])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, help="of texts, in tokens; pictures and sound keep theirs")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    options = parser.parse_args()
    t.logging.set_verbosity_error()
    t.logging.disable_progress_bar()
    where = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    print(f"jax {jax.__version__}, torch {torch.__version__}, transformers {t.__version__}; {where}; {vars(options)}")
    if (jax.default_backend() == "gpu") != (options.device == "cuda"):
        parser.error(f"--device={options.device}, but jax computes on {jax.default_backend()}")
    rows = [line for name in options.models.split(",") for line in compare(name, options)]
    print("\n| model | what | ours (ms) | eager (ms) | compiled (ms) | ours/eager | ours/compiled |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
