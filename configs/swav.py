"""SwAV: features without labels, from clusters that one view predicts of another (Caron 2020).

python launch.py train --config=configs/swav.py:size=tiny --workdir=runs/swav

size        | what                                                             | reaches, in
tiny        | 0.7M parameters, embedded emoji                                  | kNN 0.53 (untrained 0.42, pixels 0.41), probe 0.53 (0.50,
            |                                                                  | 0.55), seed 0; 520 s of CPU
            | the same on 10,000 pictures of CIFAR-10 (docs/vision.md)         | probe 0.50 (untrained, pixels 0.38), kNN 0.42 (0.28, 0.38)
small       | 5.6M, CIFAR-10: python tools/make_cifar10.py data/cifar10        | not run
paper_small | ViT-S/16, 23M with its projector, ImageNet                       | not run
paper       | ViT-B/16, 88M with its projector, ImageNet                       | not run

Those of the paper have its views (2 of 224 and 6 of 96 pixels), projector, 3,000 prototypes that wait for one epoch, ε 0.05
with 3 rounds, temperature 0.1 and batch 4096 (§4.1 and appendix A). It trains ResNets by LARS; for what a ViT takes instead,
see configs/simclr.py.
"""

from ml_collections import ConfigDict

from configs import common, simclr
from tasks.swav import Swav


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "small": small}, paper=paper, shapes=simclr.SHAPES)


def tiny(config: ConfigDict) -> None:
    simclr.tiny_encoder(config)
    # Of so small pictures small views show too little, and a queue that is read from the first step on holds features that are
    # no more: with both, 64 prototypes and ε 0.05, features lose nearly all directions (docs/vision.md).
    config.tasks.swav = common.every(Swav, views=simclr.MILD, batch_size=256, prototypes=256, epsilon=0.02)


def small(config: ConfigDict) -> None:
    simclr.small_encoder(config)
    views = dict(crop=(0.08, 1.0)) | simclr.PALE
    config.tasks.swav = common.every(Swav, views=views, prototypes=512, epsilon=0.02, **simclr.CIFAR10)


def paper(config: ConfigDict, size: str) -> None:
    simclr.paper_encoder(config, size)
    config.tokenizers.image.resize = True
    config.optimizer.freeze = (*config.optimizer.freeze, "heads.swav.prototypes=313")
    config.tasks.swav = common.every(
        Swav,
        source="folder:data/imagenet",
        views=dict(crop=(0.14, 1.0), small=6, small_size=(96, 96), small_crop=(0.05, 0.14)),
        batch_size=4096,
        pooling="first",
        projector=dict(hidden=2048, size=128),
        prototypes=3000,
    )
