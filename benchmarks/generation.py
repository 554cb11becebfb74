"""Greedy generation with a cache, beside transformers' `generate` on the same weights, alternating in one run.

    pip install torch transformers   # beside unimodal
    python benchmarks/generation.py [--batch=1,8] [--prompt=64] [--steps=128] [--rounds=5] [--depth=12] [--width=768]
    python benchmarks/generation.py --directory=data/weights/stories15m

Without a directory: GPT-2's smallest shape, initialised at random by transformers, saved, and loaded by both. Tokens/s
are those of the whole call, prompt included, in the median over the rounds after a first call that is not counted; the
ids of both are compared.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import torch
import transformers as t
from timing import in_turns

from unimodal.interop import load_huggingface


def compare(directory: str, options: argparse.Namespace, batch: int) -> str:
    model = load_huggingface(directory)
    twin = t.AutoModelForCausalLM.from_pretrained(directory).eval()
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, twin.config.vocab_size, (batch, options.prompt)).astype(np.int32)
    ids = torch.from_numpy(prompt).long()
    fixed = dict(do_sample=False, min_new_tokens=options.steps, max_new_tokens=options.steps, pad_token_id=0)

    def theirs() -> np.ndarray:
        with torch.no_grad():
            return twin.generate(ids, attention_mask=torch.ones_like(ids), **fixed)[:, options.prompt :].numpy()

    def here() -> np.ndarray:
        return model.generate(text=prompt, steps=options.steps, stop=())

    times = in_turns({"here": here, "there": theirs}, options.rounds)
    rates = [batch * options.steps / found.median for found in times.values()]
    same = (here() == theirs()).mean()
    return (
        f"| {batch} | {rates[0]:,.0f} | {rates[1]:,.0f} | {times['there'].over(times['here'])} "
        f"| {same:.1%} | {times['here'].first:.1f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", help="a saved causal language model")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    options = parser.parse_args()
    t.logging.set_verbosity_error()
    t.logging.disable_progress_bar()
    print(
        "| batch | unimodal, tokens/s | transformers, tokens/s | times as fast | same ids | first call |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as made:
        if options.directory is None:
            torch.manual_seed(0)
            heads = max(1, options.width // 64)
            config = t.GPT2Config(n_embd=options.width, n_layer=options.depth, n_head=heads)
            t.GPT2LMHeadModel(config).save_pretrained(made)
        for batch in options.batch.split(","):
            print(compare(options.directory or made, options, int(batch)), flush=True)


if __name__ == "__main__":
    main()
