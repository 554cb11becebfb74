"""SimCLR: features without labels, from two views of a picture that agree (Chen 2020).

python launch.py train --config=configs/simclr.py:size=tiny --workdir=runs/simclr

size        | what                                                             | reaches, in
tiny        | 0.7M parameters, embedded emoji                                  | kNN 0.59 (untrained 0.42, pixels 0.41), probe 0.55 (0.50,
            |                                                                  | 0.55), seed 0; 240 s of CPU
            | the same on 10,000 pictures of CIFAR-10 (docs/vision.md)         | probe 0.51 (untrained, pixels 0.38), kNN 0.45 (0.28, 0.38)
small       | 5.5M, CIFAR-10: python tools/make_cifar10.py data/cifar10        | not run
paper_small | ViT-S/16, 27M with its projector, ImageNet                       | not run
paper       | ViT-B/16, 92M with its projector, ImageNet                       | not run

Those of the paper have its views (appendix A), projector of three layers, batch 4096 and temperature 0.1 (Chen 2020b, §3;
Chen 2020, appendix B.1). It trains ResNets by LARS; what a ViT takes instead is as in Chen 2021 and the authors' published
commands: AdamW with a rate of 1.5e-4 for each 256 examples, weight decay 0.1, 300 epochs with 40 of warm-up, positions that
are sines and cosines and a patch projection that stays as it begins, and 12 heads in ViT-S. `small` has the views that the
paper has for CIFAR-10: half the colour jitter, no blur, temperature 0.5 (appendix B.9).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from tasks.simclr import Simclr
from unimodal.tokenizers import image

SHAPES = {"paper_small": dict(width=384, depth=12, heads=12), "paper": dict(width=768, depth=12, heads=12)}
# What the small recipes share, and what their views do to colours.
CIFAR10: dict[str, Any] = dict(source="array_record:data/cifar10", batch_size=512, projector=dict(hidden=512, size=128))
PALE: dict[str, Any] = dict(jitter=(0.4, 0.4, 0.4, 0.1), blur=(0.0,))
# Mild, as for so small a model in so few steps; and the group of an emoji is also told by its colours.
MILD: dict[str, Any] = dict(crop=(0.3, 1.0), jitter=(0.2, 0.2, 0.2, 0.05), grey=0.1, blur=(0.0,))


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "small": small}, paper=paper, shapes=SHAPES)


def tiny_encoder(config: ConfigDict) -> None:
    config.update(steps=1200, log_every=100)
    config.optimizer.update(learning_rate=1e-3, warmup=30)
    config.backbones.shared = common.backbone(width=128, depth=3, heads=4, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=8, init_std=0.5)
    look(config, "embedded:emoji", raw=True)


def small_encoder(config: ConfigDict) -> None:
    # 200 epochs of 50,000 pictures.
    config.update(steps=19_500, log_every=100, eval_every=2_000, checkpoint_every=2_000)
    config.optimizer.update(learning_rate=1e-3, warmup=1_000, final=0.0, b1=0.9, b2=0.999, weight_decay=0.1)
    config.backbones.shared = common.backbone(width=192, depth=12, heads=3)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=4)
    look(config, CIFAR10["source"], every=2_000)


def paper_encoder(config: ConfigDict, size: str) -> None:
    # 300 epochs of 1.28 million images.
    config.update(steps=93_800, log_every=100, eval_every=5_000, checkpoint_every=5_000)
    common.sees_imagenet(config, SHAPES[size], b2=0.999, weight_decay=0.1, freeze=("tokenizers.image.projection",))


def look(config: ConfigDict, source: str, **options: Any) -> None:
    """Attach evaluations of features: a linear probe, neighbours, and how many directions the features use."""
    config.evaluations.probe = dict(kind="linear_probe", source=source, **options)
    config.evaluations.near = dict(kind="knn", source=source, k=10, cosine=True, **options)
    config.evaluations.rank = dict(
        kind="effective_rank", source=source, **{k: v for k, v in options.items() if k != "raw"}
    )


def tiny(config: ConfigDict) -> None:
    tiny_encoder(config)
    config.tasks.simclr = common.every(Simclr, views=MILD, batch_size=128)


def small(config: ConfigDict) -> None:
    small_encoder(config)
    config.tasks.simclr = common.every(Simclr, views=dict(crop=(0.08, 1.0)) | PALE, temperature=0.5, **CIFAR10)


def paper(config: ConfigDict, size: str) -> None:
    paper_encoder(config, size)
    config.tasks.simclr = common.every(
        Simclr,
        source="folder:data/imagenet",
        batch_size=4096,
        pooling="first",
        projector=dict(layers=3, hidden=2048, size=128),
    )
