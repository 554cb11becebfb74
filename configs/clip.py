"""CLIP: match images with their words (Radford 2021).

python launch.py train --config=configs/clip.py:size=tiny --workdir=runs/clip

size        | what                                                                     | reaches, in
tiny        | 1.1M parameters, embedded emoji and their names, one seed                | recall@5 0.12 (chance 0.03), 135 s of CPU
paper       | ViT-B/16 and its text encoder, 150M                                      | not run
paper_large | ViT-L/14 and its text encoder, 428M                                      | not run

Those of the paper have its shapes (tables 19 and 20) and common settings (table 18): batch 32,768, 32 epochs of 400 million
pairs, 2,000 steps of warm-up and a cosine to 0, Adam's β and ε for transformers, weight decay 0.2, temperature from 0.07;
the rates are table 20's. As there, a text is read from left to right and its last token stands for it, a picture's class
token for the picture; so --config.init_from=DIR of a published CLIP of that shape fills all of it, temperature included, and
its vocabulary and pixels come along. Otherwise than there, text is encoded as bytes without one, of which the table of 49,408
rows uses the first 264. Pairs belong into data/pairs/train and data/pairs/validation.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from tasks.clip import Clip
from unimodal.tokenizers import image, text

# Image: patch and shape; text: shape; size of the embeddings; learning rate.
SHAPES: dict[str, tuple[int, dict[str, Any], dict[str, Any], int, float]] = {
    "paper": (16, dict(width=768, depth=12, heads=12), dict(width=512, depth=12, heads=8), 512, 5e-4),
    "paper_large": (14, dict(width=1024, depth=24, heads=16), dict(width=768, depth=12, heads=12), 768, 4e-4),
}


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny}, paper=paper, shapes=SHAPES)


def tiny(config: ConfigDict) -> None:
    config.update(steps=1000, log_every=50, eval_every=250)
    config.optimizer.update(learning_rate=2e-3, warmup=100)
    config.backbones.image = common.backbone(width=128, depth=3, heads=4, scan=False)
    config.backbones.text = common.backbone(width=128, depth=2, heads=4, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=8)
    config.tokenizers.text = common.every(text.Config, vocabulary=264, max_length=32)
    # No mirror images: "left arrow" and "right arrow" are different words.
    config.tasks.clip = common.every(
        Clip,
        images=dict(crop=(0.6, 1.0), shift=2, jitter=(0.2, 0.2, 0.2)),
        texts=dict(phrases="keywords"),
        image_backbone="image",
        text_backbone="text",
    )


def paper(config: ConfigDict, size: str) -> None:
    patch, vision, language, embedding, rate = SHAPES[size]
    # 32 epochs of 400 million pairs.
    config.update(steps=390_600, log_every=100, eval_every=5_000, checkpoint_every=5_000)
    config.optimizer.update(
        learning_rate=rate, warmup=2_000, final=0.0, b1=0.9, b2=0.98, epsilon=1e-6, weight_decay=0.2, clip=0.0
    )
    common_to_both: dict[str, Any] = dict(activation="quick_gelu", norm_epsilon=1e-5, dtype="bfloat16", remat="light")
    config.backbones.image = common.backbone(**vision, final_norm=False, **common_to_both)
    config.backbones.text = common.backbone(**language, **common_to_both)
    config.tokenizers.image = common.every(
        image.Config,
        image_size=(224, 224),
        patch=patch,
        registers=1,
        bias=False,
        norm=True,
        norm_epsilon=1e-5,
    )
    config.tokenizers.text = common.every(text.Config, vocabulary=49_408, max_length=77)
    config.tasks.clip = common.every(
        Clip,
        source="folder:data/pairs",
        images=dict(crop=(0.9, 1.0)),
        texts=dict(length=77),
        batch_size=32_768,
        size=embedding,
        image_head=dict(pooling="first", norm=1e-5),
        text_head=dict(pooling="last"),
        causal=True,
        image_backbone="image",
        text_backbone="text",
    )
