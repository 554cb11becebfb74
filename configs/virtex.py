"""VirTex: learn to see by writing captions (Desai & Johnson 2021).

python launch.py train --config=configs/virtex.py:size=tiny --workdir=runs/virtex

size  | what                                                                      | reaches, in
tiny  | 0.7M parameters, embedded emoji and their names                           | chrF 12.8 (commonest caption 7.9), 240 s of CPU;
      |                                                                           | token accuracy 0.38, below its baseline 0.45
paper | ViT-B/16 that also writes, 94M, captions of COCO                          | not run

As in the paper (§3 and its appendix): captions of at most 30 tokens of a vocabulary of 10,000, written forward and backward,
batch 256, 500,000 steps with 10,000 of warm-up and a cosine to 0, crops to a fifth of the picture, mirror images, beams of 5.
Otherwise than there, one backbone reads the picture and writes the caption, in place of a ResNet-50 and a transformer of one
layer, and AdamW trains it, in place of SGD with Lookahead. "left" and "right" in captions change places in no mirror image,
so the probability of one is 0 here. Pairs belong into data/coco/train and data/coco/validation, and the vocabulary into
data/coco/vocabulary.model.
"""

from ml_collections import ConfigDict

from configs import common
from tasks.virtex import Virtex
from unimodal.tokenizers import image, text


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "paper": paper})


def tiny(config: ConfigDict) -> None:
    config.update(steps=800, log_every=50, eval_every=200, eval_limit=4)
    config.optimizer.update(learning_rate=2e-3, warmup=100)
    config.backbones.shared = common.backbone(width=128, depth=3, heads=4, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=8, init_std=0.5)
    config.tokenizers.text = common.every(text.Config, vocabulary=264, max_length=32)
    # No mirror images: "left arrow" and "right arrow" are different words.
    config.tasks.virtex = common.every(Virtex, images=dict(crop=(0.8, 1.0), shift=2), texts=dict(column="name"))
    config.evaluations.probe = dict(kind="linear_probe", source="embedded:emoji")


def paper(config: ConfigDict) -> None:
    config.update(steps=500_000, log_every=100, eval_every=10_000, checkpoint_every=10_000)
    config.optimizer.update(learning_rate=1e-3, warmup=10_000, final=0.0, weight_decay=0.05, clip=10.0)
    config.backbones.shared = common.backbone(width=768, depth=12, heads=12, dtype="bfloat16", remat="light")
    config.tokenizers.image = common.every(image.Config, image_size=(224, 224), patch=16)
    config.tokenizers.text = common.every(text.Config, vocabulary=10_000, max_length=30, norm=True, dropout=0.1)
    config.tasks.virtex = common.every(
        Virtex,
        source="folder:data/coco",
        images=dict(crop=(0.2, 1.0), jitter=(0.4, 0.4, 0.4)),
        texts=dict(length=30, encoder="data/coco/vocabulary.model"),
        batch_size=256,
    )
