"""MoCo: features without labels, from keys that a slow copy of the encoder makes (He 2020; Chen 2021).

python launch.py train --config=configs/moco.py:size=tiny --workdir=runs/moco

size        | what                                                             | reaches, in
tiny        | 0.8M parameters, embedded emoji; v3                              | kNN 0.53 (untrained 0.42, pixels 0.41), probe 0.53 (0.50,
            |                                                                  | 0.55), seed 0; 300 s of CPU
            | the same on 10,000 pictures of CIFAR-10 (docs/vision.md)         | probe 0.49 (untrained, pixels 0.38), kNN 0.40 (0.28, 0.38)
tiny_v2     | the same encoder with a queue of 2,048 keys; v2; on CIFAR-10     | probe 0.45, kNN 0.39
small       | 5.9M, CIFAR-10: python tools/make_cifar10.py data/cifar10; v3    | not run
paper_small | ViT-S/16 as v3 trains it on ImageNet                             | not run, published: linear probe 73.2 %
paper       | ViT-B/16, likewise                                               | not run, published: linear probe 76.7 %

Those of the paper have its shapes and settings (Chen 2021, §4, and the authors' published commands): batch 4096, AdamW with
a rate of 1.5e-4 for each 256 examples, weight decay 0.1, 300 epochs with 40 of warm-up, a projector of three layers and a
predictor of two, 4096 wide, temperature 0.2, a momentum that rises from 0.99 to 1, views as BYOL has them (Grill 2020, table
6), positions that are sines and cosines and a patch projection that stays as it begins, and 12 heads in ViT-S.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, simclr
from tasks.moco import Moco


def get_config(argument: str = "") -> ConfigDict:
    sizes = {"tiny": tiny, "small": small, "tiny_v2": tiny_v2}
    return common.sized(argument, sizes, paper=paper, shapes=simclr.SHAPES)


def tiny(config: ConfigDict) -> None:
    simclr.tiny_encoder(config)
    # In so few steps a copy that is slower lags behind: with 0.99 recall@1 is 0.493 and kNN 0.520.
    config.tasks.moco = common.every(Moco, views=simclr.MILD, batch_size=128, momentum=0.9)


def tiny_v2(config: ConfigDict) -> None:
    simclr.tiny_encoder(config)
    projector = dict(layers=2, norm="none", last_norm=False)
    config.tasks.moco = common.every(
        Moco, views=simclr.MILD, batch_size=128, queue=2048, projector=projector, final_momentum=0.99
    )


def small(config: ConfigDict) -> None:
    simclr.small_encoder(config)
    views = dict(crop=(0.08, 1.0)) | simclr.PALE
    config.tasks.moco = common.every(Moco, views=views, predictor=512, **simclr.CIFAR10)


def paper(config: ConfigDict, size: str) -> None:
    simclr.paper_encoder(config, size)
    wide: dict[str, Any] = dict(hidden=4096, size=256)
    config.tasks.moco = common.every(
        Moco,
        source="folder:data/imagenet",
        views=dict(jitter=(0.4, 0.4, 0.2, 0.1), blur=(1.0, 0.1), solarise=(0.0, 0.2)),
        batch_size=4096,
        pooling="first",
        projector=wide,
        predictor=wide["hidden"],
    )
