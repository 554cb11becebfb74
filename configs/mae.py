"""MAE: rebuild the pixels of hidden patches, for features that need no labels (He 2022).

python launch.py train --config=configs/mae.py:size=tiny --workdir=runs/mae

size        | what                                                          | reaches, in
tiny        | 0.9M parameters, embedded emoji                               | squared error 0.44 (the mean patch 0.76), three seeds; 178 s
            |                                                               | of CPU; neighbours 0.49 (pixels 0.42), probe 0.52 (0.55)
            | the same on 10,000 pictures of CIFAR-10 (docs/vision.md)      | probe 0.52 (pixels 0.38, untrained 0.45), neighbours 0.40
mini        | 0.9M, CIFAR-10: python tools/make_cifar10.py data/cifar10     | squared error 0.55 (the mean patch 0.95), probe 0.54
            |                                                               | (untrained 0.45), neighbours 0.46 (pixels 0.34), seed 0; 50
            |                                                               | minutes of a core without AVX-512
small       | 7M, CIFAR-10, the same data                                   | not run
paper       | MAE with ViT-B/16, 112M with its decoder, ImageNet            | not run
paper_large | the same with ViT-L/16, 330M                                  | not run

Those of the paper have its encoders (table 1 of Dosovitskiy 2021), its decoder of 8 layers and width 512 (table 1d), 75 % of
the patches hidden, normalised pixels, and the hyper-parameters of table 8: batch 4096, 800 epochs with 40 of warm-up, rate
1.5e-4 for each 256 examples, β₂ 0.95, weight decay 0.05, positions that are sines and cosines and stay so. Otherwise than
there, weights begin as all of ours do, and pictures are cropped bilinearly. The published weights go on training with
--config.init_from=DIR --config.backbones.shared.norm_epsilon=1e-12 --config.backbones.decoder.norm_epsilon=1e-12; DIR is a
copy of facebook/vit-mae-base. A run of mini or small is fine-tuned as a classifier by configs/vit.py of the same size, with
--config.init_from=runs/mae.
"""

from ml_collections import ConfigDict

from configs import common
from tasks.mae import Mae
from unimodal.tokenizers import image

SHAPES = {"paper": dict(width=768, depth=12, heads=12), "paper_large": dict(width=1024, depth=24, heads=16)}


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "mini": mini, "small": small}, paper=paper, shapes=SHAPES)


def tiny(config: ConfigDict) -> None:
    config.update(steps=1500, log_every=50, eval_every=500)
    config.optimizer.update(learning_rate=2e-3, warmup=100, b2=0.95, weight_decay=0.05)
    config.backbones.shared = common.backbone(width=128, depth=4, heads=4, scan=False)
    config.backbones.decoder = common.backbone(width=64, depth=2, heads=4, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=4, sincos=True)
    config.tasks.mae = common.every(Mae, images=dict(crop=(0.5, 1.0), flip=0.5), batch_size=64)
    # What the features are good for, beside those of raw pixels and of the untrained encoder.
    config.evaluations.probe = dict(kind="linear_probe", source="embedded:emoji", raw=True)
    config.evaluations.near = dict(kind="knn", source="embedded:emoji", k=10, raw=True)


def mini(config: ConfigDict) -> None:
    # 8 epochs of 50,000 pictures.
    config.update(steps=1_564, log_every=50, eval_every=391, checkpoint_every=391)
    config.optimizer.update(learning_rate=2e-3, warmup=150, b2=0.95, weight_decay=0.05)
    config.backbones.shared = common.backbone(width=128, depth=4, heads=4, scan=False)
    config.backbones.decoder = common.backbone(width=64, depth=2, heads=4, scan=False)
    on_cifar10(config, batch_size=256)


def small(config: ConfigDict) -> None:
    # 205 epochs.
    config.update(steps=20_000, log_every=100, eval_every=2_000, checkpoint_every=2_000)
    config.optimizer.update(learning_rate=1.2e-3, warmup=2_000, final=0.0, b2=0.95, weight_decay=0.05)
    config.backbones.shared = common.backbone(width=192, depth=12, heads=3)
    config.backbones.decoder = common.backbone(width=192, depth=4, heads=3)
    on_cifar10(config, batch_size=512)


def on_cifar10(config: ConfigDict, batch_size: int) -> None:
    """Rebuild pictures of CIFAR-10 in patches of 4, and ask at the end what the features are good for."""
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=4, sincos=True)
    source = "array_record:data/cifar10"
    config.tasks.mae = common.every(Mae, source=source, images=dict(crop=(0.2, 1.0), flip=0.5), batch_size=batch_size)
    config.evaluations.probe = dict(kind="linear_probe", source=source)
    config.evaluations.near = dict(kind="knn", source=source, k=20, raw=True)


def paper(config: ConfigDict, size: str) -> None:
    # 800 epochs of 1.28 million images.
    config.update(steps=250_000, log_every=100, checkpoint_every=5_000, eval_every=25_000)
    common.sees_imagenet(config, SHAPES[size], b2=0.95, weight_decay=0.05, freeze=("heads.mae.decoder_position",))
    config.backbones.decoder = common.backbone(width=512, depth=8, heads=16, dtype="bfloat16", remat="light")
    crop = dict(crop=(0.2, 1.0), flip=0.5)
    config.tasks.mae = common.every(Mae, source="folder:data/imagenet", images=crop, batch_size=4096)
