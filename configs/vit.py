"""ViT: classify images (Dosovitskiy 2021).

python launch.py train --config=configs/vit.py:size=tiny --workdir=runs/vit

size        | what                                                               | reaches, in
tiny        | 0.6M parameters, embedded emoji in their groups                    | accuracy 0.53 (majority class 0.18), three seeds; 32 s of CPU
            | 2,000 pictures of Fashion-MNIST instead (docs/results.md)          | accuracy 0.81 (logistic regression 0.83; by the
            |                                                                    | validation that crops and positions were changed for)
mini        | 0.8M, CIFAR-10: python tools/make_cifar10.py data/cifar10          | accuracy 0.62, 0.69 from MAE's mini, seed 0; 39 minutes of a
            |                                                                    | core without AVX-512
small       | 5M, CIFAR-10, the same data                                        | not run
paper       | ViT-B/16, 87M, ImageNet's thousand classes                         | not run
paper_large | ViT-L/16, 304M, the same                                           | not run
paper_huge  | ViT-H/14, 632M, the same                                           | not run
deit_small  | DeiT-S/16, 22M, trained on ImageNet alone (Touvron 2021)           | not run
deit        | DeiT-B/16, 87M, the same                                           | not run

Those of the paper have its shapes (table 1), its batch of 4096 with 10,000 steps of warm-up and Adam's β (§4.1), and what
table 3 says of training on ImageNet from scratch: 300 epochs, rate 3e-3 with cosine decay, weight decay 0.3, dropout 0.1,
clipping at 1. Otherwise than there, the head is one linear layer, as the paper has it in fine-tuning. Pictures belong into
data/imagenet/train/CLASS and data/imagenet/validation/CLASS.

Those of DeiT have the hyper-parameters of its table 9: batch 1024, rate 5e-4 for each 512 examples, 5 epochs of warm-up, weight
decay 0.05, label smoothing, RandAugment of two operations at 9, mixup 0.8, CutMix 1.0, erasing of a quarter of the pictures and
stochastic depth to 0.1; without repeated augmentation. `mini` and `small` have the encoders of configs/mae.py's mini and
small: start one from such a run with --config.init_from=runs/mae.
"""

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from configs import common
from tasks.vit import Vit
from unimodal.tokenizers import image

SHAPES = {
    "paper": dict(width=768, depth=12, heads=12),
    "paper_large": dict(width=1024, depth=24, heads=16),
    "paper_huge": dict(width=1280, depth=32, heads=16),
}
# What DeiT does to each picture, and to two at a time.
AUGMENTED: dict[str, Any] = dict(flip=0.5, randaugment=(2, 9.0), erase=0.25)
MIXED: dict[str, Any] = dict(mixup=0.8, cutmix=1.0)
DEIT = {"deit_small": dict(width=384, depth=12, heads=6), "deit": SHAPES["paper"]}


def get_config(argument: str = "") -> ConfigDict:
    recent = {size: partial(deit, size=size) for size in DEIT}
    return common.sized(argument, {"tiny": tiny, "mini": mini, "small": small, **recent}, paper=paper, shapes=SHAPES)


def tiny(config: ConfigDict) -> None:
    config.update(steps=1000, log_every=50, eval_every=250)
    config.optimizer.update(learning_rate=2e-3, warmup=100)
    config.backbones.shared = common.backbone(width=128, depth=3, heads=4, scan=False)
    # Places as large as patches: from the usual 0.02 some hundred steps pass before the model knows where a patch lies.
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=8, init_std=0.5)
    # Mild. In sixteen epochs, crops to 0.6, white borders and other colours keep a model this small from learning.
    config.tasks.vit = common.every(Vit, images=dict(crop=(0.8, 1.0), flip=0.5))


def mini(config: ConfigDict) -> None:
    # 4 epochs of 50,000 pictures, with the encoder of configs/mae.py's mini.
    config.update(steps=1_564, log_every=50, eval_every=391, checkpoint_every=391)
    config.optimizer.update(learning_rate=1e-3, warmup=150, weight_decay=0.05)
    config.backbones.shared = common.backbone(width=128, depth=4, heads=4, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=4, sincos=True)
    images, labels = dict(crop=(0.6, 1.0), flip=0.5), dict(count=10)
    config.tasks.vit = common.every(
        Vit, source="array_record:data/cifar10", images=images, labels=labels, batch_size=128
    )


def small(config: ConfigDict) -> None:
    # 205 epochs.
    config.update(steps=20_000, log_every=100, eval_every=2_000, checkpoint_every=2_000)
    config.optimizer.update(learning_rate=1e-3, warmup=1_000, final=0.0, weight_decay=0.05)
    config.backbones.shared = common.backbone(width=192, depth=12, heads=3, stochastic_depth=0.1)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=4, sincos=True)
    images, labels = dict(crop=(0.5, 1.0), **AUGMENTED), dict(count=10)
    config.tasks.vit = common.every(
        Vit, source="array_record:data/cifar10", images=images, labels=labels, batch_size=512, **MIXED
    )


def paper(config: ConfigDict, size: str) -> None:
    # 300 epochs of 1.28 million images.
    config.update(steps=93_800, log_every=100, eval_every=5_000, checkpoint_every=5_000)
    config.optimizer.update(learning_rate=3e-3, warmup=10_000, final=0.0, b1=0.9, b2=0.999, weight_decay=0.3, clip=1.0)
    config.backbones.shared = common.backbone(**SHAPES[size], dropout=0.1, dtype="bfloat16", remat="light")
    config.tokenizers.image = common.every(
        image.Config, image_size=(224, 224), patch=14 if size == "paper_huge" else 16, dropout=0.1
    )
    imagenet(config, dict(crop=(0.05, 1.0), flip=0.5), batch_size=4096, label_smoothing=0.0)


def deit(config: ConfigDict, size: str) -> None:
    # 300 epochs of 1.28 million images.
    config.update(steps=375_000, log_every=100, eval_every=12_500, checkpoint_every=12_500)
    config.optimizer.update(learning_rate=1e-3, warmup=6_250, final=0.01, b1=0.9, b2=0.999, weight_decay=0.05, clip=0.0)
    config.backbones.shared = common.backbone(**DEIT[size], stochastic_depth=0.1, dtype="bfloat16", remat="light")
    config.tokenizers.image = common.every(image.Config, image_size=(224, 224), patch=16)
    imagenet(config, dict(crop=(0.08, 1.0), **AUGMENTED), batch_size=1024, **MIXED)


def imagenet(config: ConfigDict, images: dict[str, Any], **given: Any) -> None:
    """Tell the thousand classes of data/imagenet apart by the class token."""
    labels = dict(count=1000)
    config.tasks.vit = common.every(
        Vit, source="folder:data/imagenet", images=images, labels=labels, pooling="first", **given
    )
