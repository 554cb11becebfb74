"""Exported models in transformers: opened by its own classes, with equal outputs.

python tests/reference/interop/check_exported.py

It needs torch and transformers beside this package; nothing else here does. Each architecture that `export` writes is made
of a model of the tiny test config with random weights, exported, opened strictly (no weight missing, none left over), and run on the
same arrays on both sides. Prints the largest difference of each output.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import exports  # noqa: E402
import used  # noqa: E402

import unimodal  # noqa: E402
from unimodal.use.export import Target, export  # noqa: E402

TOLERANCE = 2e-5


def inputs(name: str, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same arrays as ours and as theirs."""
    ids = rng.integers(8, 264, (2, 12)).astype(np.int32)
    pixels = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    there = torch.tensor(pixels.transpose(0, 3, 1, 2))
    if name in ("vit", "mae"):
        return dict(image=pixels), dict(pixel_values=there)
    if name in ("clip", "siglip"):
        ids = rng.integers(8, 263, (2, 16)).astype(np.int32)
        ids[:, -1] = 263  # the largest: where a text ends
        return dict(image=pixels, text=ids), dict(pixel_values=there, input_ids=torch.tensor(ids).long())
    if name in ("wav2vec2", "ctc"):
        audio = rng.normal(size=(2, 4000)).astype(np.float32)
        return dict(audio=audio), dict(input_values=torch.tensor(audio))
    if name == "ast":
        frames = rng.normal(size=(2, 24, 16)).astype(np.float32)
        return dict(audio=frames), dict(input_values=torch.tensor(frames))
    return dict(text=ids), dict(input_ids=torch.tensor(ids).long())


OUTPUTS = {
    "clip": {"image_embedding": "image_embeds", "text_embedding": "text_embeds", "logits": "logits_per_image"},
    "siglip": {"image_embedding": "image_embeds", "text_embedding": "text_embeds", "logits": "logits_per_image"},
    "mae": {"patches": "logits"},
    "wav2vec2": {"projected": "projected_states", "quantised": "projected_quantized_states"},
}


def masked_apart(workdir: Path, theirs: Any, pixels: np.ndarray, rng: np.random.Generator) -> float:
    """How far two MAEs differ that hide the same patches: the task as it trains, and theirs."""
    loaded = unimodal.load(workdir)
    noise = rng.random((len(pixels), 4)).astype(np.float32)
    mine = jax.jit(loaded.tasks["mae"].predict)(loaded.model, dict(image=pixels, noise=noise))
    with torch.no_grad():
        found = theirs.eval()(torch.tensor(pixels.transpose(0, 3, 1, 2)), noise=torch.tensor(noise))
    np.testing.assert_array_equal(mine["masked"], found["mask"].numpy().astype(bool))
    return float(np.abs(np.asarray(mine["predicted"]) - found["logits"].numpy()).max())


def check(name: str, folder: Path) -> str:
    workdir, target = folder / name, folder / f"{name}_hf"
    used.workdir(workdir, exports.config_of(name), noise=0.05)
    export(unimodal.load(workdir), Target("huggingface", target))
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(target).architectures[0])
    theirs, told = kind.from_pretrained(target, output_loading_info=True, attn_implementation="eager")
    left = {what: sorted(told[what]) for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if told[what]}
    ours = unimodal.load_huggingface(target)
    a, b = inputs(name, np.random.default_rng(0))
    mine = jax.jit(lambda m, x: m(**x))(ours, a)
    worst = {}
    if name == "mae":
        worst["masked"] = masked_apart(workdir, theirs, pixels := a["image"], np.random.default_rng(1))
        theirs.config.mask_ratio = 0.0  # as ours is read: every patch is seen
        b["noise"] = torch.arange(4).repeat(len(pixels), 1).float()
    with torch.no_grad():
        found = theirs.eval()(**b)
    for mine_name, their_name in OUTPUTS.get(name, {"logits": "logits"}).items():
        worst[mine_name] = float(np.abs(np.asarray(mine[mine_name]) - found[their_name].numpy()).max())
    if name in ("gpt2", "llama", "bert", "text_classifier", "clip"):  # and what prepares its texts
        text = "Ein Beispiel – 例"
        tokenizer = transformers.AutoTokenizer.from_pretrained(target)
        assert tokenizer(text)["input_ids"] == unimodal.load_preprocessor(target)(text=text)["text"][0].tolist()
    assert not left, (name, left)
    assert all(value < TOLERANCE for value in worst.values()), (name, worst)  # NaN is not
    return f"{name:<16} {kind.__name__:<32} " + ", ".join(f"{n} {v:.1e}" for n, v in worst.items())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        for each in sys.argv[1:] or sorted(exports.FITS):
            print(check(each, Path(made)), flush=True)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: all equal within {TOLERANCE:g}")
