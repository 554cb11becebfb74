"""GPT: predict the next token (Radford 2018; Radford 2019).

python launch.py train --config=configs/gpt.py:size=tiny --workdir=runs/gpt

size    | what                                                                              | reaches, in
tiny    | 1.4M parameters, bytes of the embedded book                                       | 2.37 bits per byte (bigram 3.51), 4 minutes
small   | 25M, bytes of enwik8: python tools/fetch_text.py data/ enwik8                     | not run
paper   | GPT-2's smallest, 124M: python tools/fetch_text.py data/ gpt2, and text           | not run
paper_xl| GPT-2's largest, 1.5B: the same                                                   | not run

The two of the paper have GPT-2's shape (table 2), vocabulary, context and batch (§2.3: 512 rows of 1024). Its learning
rate and number of steps were not published: those here are GPT-3's for models of this size (Brown 2020, table 2.1 and
appendix B), and so are AdamW's constants. The text of the paper was not published either: put one's own documents into
data/webtext/train and data/webtext/validation as .txt files, or name another source.
"""

from ml_collections import ConfigDict

from configs import common
from tasks.gpt import Gpt
from unimodal.tokenizers import text

SHAPES = {"paper": dict(width=768, depth=12, heads=12), "paper_xl": dict(width=1600, depth=48, heads=25)}


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "small": small}, paper=paper, shapes=SHAPES)


def tiny(config: ConfigDict) -> None:
    common.on_the_book(config, steps=600, evaluate=200)
    config.tasks.gpt = common.every(Gpt, batch_size=16)


def small(config: ConfigDict) -> None:
    source = common.on_enwik8(config)
    config.optimizer.update(learning_rate=1e-3, warmup=1_000, b2=0.95, weight_decay=0.1)
    config.backbones.shared = common.backbone(
        width=512, depth=8, heads=8, activation="gelu_tanh", rope_theta=10_000.0, dtype="bfloat16", dropout=0.1
    )
    config.tokenizers.text = common.every(text.Config, vocabulary=264)
    config.tasks.gpt = common.every(Gpt, source=source, batch_size=64, texts=dict(length=512))


def paper(config: ConfigDict, size: str) -> None:
    # 300 billion tokens.
    config.update(steps=572_000, log_every=100, eval_every=10_000, eval_limit=50, checkpoint_every=5_000)
    rate = {"paper": 6e-4, "paper_xl": 2e-4}[size]
    config.optimizer.update(learning_rate=rate, warmup=715, b2=0.95, weight_decay=0.1)  # 375 million tokens of warm-up
    config.backbones.shared = common.backbone(
        **SHAPES[size],
        activation="gelu_tanh",
        norm_epsilon=1e-5,
        dropout=0.1,
        dtype="bfloat16",
        remat="full" if size == "paper_xl" else "light",
    )
    config.tokenizers.text = common.every(text.Config, vocabulary=50_257, max_length=1024, dropout=0.1)
    config.tasks.gpt = common.every(
        Gpt, source="folder:data/webtext", texts=dict(encoder="data/gpt2", length=1024), batch_size=512, chunk=128
    )
