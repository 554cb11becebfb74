"""ViT: classify images (Dosovitskiy 2021).

python launch.py train --config=configs/vit.py:size=tiny --workdir=runs/vit

size        | what                                                               | reaches, in
tiny        | 0.5M parameters, embedded emoji in their groups                    | accuracy 0.51 (majority class 0.18), 126 s of CPU
            | 2,000 pictures of Fashion-MNIST instead (docs/results.md)          | accuracy 0.81 (logistic regression 0.83)
paper       | ViT-B/16, 87M, ImageNet's thousand classes                         | not run
paper_large | ViT-L/16, 304M, the same                                           | not run

Those of the paper have its shapes (table 1), its batch of 4096 with 10,000 steps of warm-up and Adam's β (§4.1), and what
table 3 says of training on ImageNet from scratch: 300 epochs, rate 3e-3 with cosine decay, weight decay 0.3, dropout 0.1,
clipping at 1. Otherwise than there, the head is one linear layer, as the paper has it in fine-tuning. Pictures belong into
data/imagenet/train/CLASS and data/imagenet/validation/CLASS.
"""

from ml_collections import ConfigDict

from configs import common
from tasks.vit import Vit
from unimodal.tokenizers import image

SHAPES = {"paper": dict(width=768, depth=12, heads=12), "paper_large": dict(width=1024, depth=24, heads=16)}


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny}, paper=paper, shapes=SHAPES)


def tiny(config: ConfigDict) -> None:
    config.update(steps=1000, log_every=50, eval_every=250)
    config.optimizer.update(learning_rate=2e-3, warmup=100)
    config.backbones.shared = common.backbone(width=128, depth=3, heads=4, scan=False)
    # Places as large as patches: from the usual 0.02 some hundred steps pass before the model knows where a patch lies.
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=8, init_std=0.5)
    # Mild. In sixteen epochs, crops to 0.6, white borders and other colours keep a model this small from learning.
    config.tasks.vit = common.every(Vit, images=dict(crop=(0.8, 1.0), flip=0.5))


def paper(config: ConfigDict, size: str) -> None:
    # 300 epochs of 1.28 million images.
    config.update(steps=93_800, log_every=100, eval_every=5_000, checkpoint_every=5_000)
    config.optimizer.update(learning_rate=3e-3, warmup=10_000, final=0.0, b1=0.9, b2=0.999, weight_decay=0.3, clip=1.0)
    config.backbones.shared = common.backbone(**SHAPES[size], dropout=0.1, dtype="bfloat16")
    config.tokenizers.image = common.every(image.Config, image_size=(224, 224), patch=16, dropout=0.1)
    config.tasks.vit = common.every(
        Vit,
        source="folder:data/imagenet",
        images=dict(crop=(0.05, 1.0), flip=0.5),
        labels=dict(count=1000),
        batch_size=4096,
        pooling="first",
        label_smoothing=0.0,
    )
