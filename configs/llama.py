"""LLaMA: predict the next token (Touvron 2023a).

python launch.py train --config=configs/llama.py:size=tiny --workdir=runs/llama
python launch.py plan  --config=configs/llama.py:size=7b --topology=v5p:8x8x8 --config.mesh.fsdp=512

size | what                                                                                      | reaches, in
tiny | 1.4M parameters of the same shape, bytes of the embedded book                             | not yet measured
7b   | LLaMA 7B, 6.7 billion parameters                                                          | not run

The large one has the paper's shape (table 2), context of 2048, batch of four million tokens, a trillion tokens in all,
and its AdamW (§2.3): rate 3e-4, β 0.9 and 0.95, weight decay 0.1, clipping at 1, 2000 steps of warm-up, then a cosine to a
tenth. Its vocabulary, 32,000 pieces, belongs into data/llama, and one's own documents into data/webtext/train and
data/webtext/validation as .txt files: the text of the paper was not published.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from tasks.gpt import Gpt
from unimodal.tokenizers import text


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "7b": paper})


# The backbone of the paper (§2.2): RMS norms before, SwiGLU, rotary positions, no bias anywhere.
SHAPE: dict[str, Any] = dict(norm="rms", norm_bias=False, qkv_bias=False, output_bias=False, mlp_bias=False)
SHAPE |= dict(activation="swiglu", rope_theta=10_000.0)


def tiny(config: ConfigDict) -> None:
    common.on_the_book(config, steps=1200, evaluate=400, **SHAPE, mlp_width=512)
    config.tasks.gpt = common.every(Gpt, batch_size=16, tied=False)


def paper(config: ConfigDict) -> None:
    # A trillion tokens.
    config.update(steps=238_000, log_every=100, eval_every=10_000, eval_limit=50, checkpoint_every=2_000)
    config.optimizer.update(learning_rate=3e-4, warmup=2_000, final=0.1, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0)
    config.backbones.shared = common.backbone(
        **SHAPE, width=4096, depth=32, heads=32, mlp_width=11_008, norm_epsilon=1e-6, dtype="bfloat16", remat="full"
    )
    config.tokenizers.text = common.every(text.Config, vocabulary=32_000)
    config.tasks.gpt = common.every(
        Gpt,
        source="folder:data/webtext",
        texts=dict(encoder="data/llama", length=2048),
        batch_size=2048,
        chunk=256,
        tied=False,
    )
