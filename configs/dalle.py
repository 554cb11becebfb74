"""DALL·E: pictures from captions, as codes written after them (Ramesh 2021).

python launch.py train --config=configs/dvae.py:size=tiny --workdir=runs/dvae
python launch.py train --config=configs/dalle.py:size=tiny --workdir=runs/dalle
python tools/draw.py --prior=runs/dalle --clip=runs/clip --out=drawn "red heart"

size  | what                                                                        | reaches, in
tiny  | 0.9M parameters beside the codebook's 0.2M, embedded emoji and their names  | 1.74 bits per code (shares of codes
      |                                                                             | at each place 3.63), 520 s of CPU
paper | 12 billion parameters, pairs of pictures and captions                       | not run

The codebook is that of a run of the recipe dvae of the same size, in runs/dvae (--config.init_from=DIR for another), and stays as
it is. That of the paper has its shapes: 64 layers of 62 heads of 64, 256 ids of text of a vocabulary of 16,384 and 1024
codes of 8192, loss weights of 1/8 and 7/8, batch 1024, 430,000 steps, rate 4.5e-4 with 5,000 of warm-up, β of 0.9 and 0.96,
weight decay 4.5e-2 and clipping at 4 (appendix B.2). Otherwise than there, every code sees the whole row, in place of a row, a
column or a neighbourhood in most layers, and a tenth of the captions is left out in training, for guidance.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, dvae
from tasks.dalle import Dalle
from unimodal.tokenizers import text

FROZEN = tuple(f"tokenizers.codes.{part}" for part in ("encoder", "decoder", "vectors"))


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "paper": paper})


def after(config: ConfigDict, size: Any) -> None:
    """Take the codebook of the recipe dvae, trained before."""
    trained = common.base()
    size(trained)
    config.tokenizers.codes = trained.tokenizers.codes
    config.init_from = "runs/dvae"
    config.optimizer.freeze = FROZEN


def tiny(config: ConfigDict) -> None:
    config.update(steps=1000, log_every=50, eval_every=250, eval_limit=4)
    config.optimizer.update(learning_rate=2e-3, warmup=100)
    config.backbones.shared = common.backbone(width=128, depth=4, heads=4, rope_theta=10_000.0, scan=False)
    config.tokenizers.text = common.every(text.Config, vocabulary=264, max_length=32)
    config.tasks.dalle = common.every(Dalle, images=dict(shift=1), texts=dict(column="name", phrases="keywords"))
    after(config, dvae.tiny)


def paper(config: ConfigDict) -> None:
    config.update(steps=430_000, log_every=100, eval_every=5_000, checkpoint_every=5_000, eval_limit=20)
    config.optimizer.update(
        learning_rate=4.5e-4, warmup=5_000, final=0.0, b1=0.9, b2=0.96, epsilon=1e-8, weight_decay=4.5e-2, clip=4.0
    )
    config.backbones.shared = common.backbone(
        width=3968, depth=64, heads=62, dtype="bfloat16", param_dtype="bfloat16", remat="full"
    )
    config.tokenizers.text = common.every(text.Config, vocabulary=16_384, max_length=256)
    config.tasks.dalle = common.every(
        Dalle,
        source="folder:data/pairs",
        images=dict(crop=(0.75, 1.0)),
        texts=dict(length=256, encoder="data/pairs/vocabulary.json"),
        batch_size=1024,
        guidance=1.0,
    )
    after(config, dvae.paper)
