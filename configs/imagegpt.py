"""ImageGPT: predict the next pixel's colour, in the order of reading (Chen 2020).

python launch.py train --config=configs/imagegpt.py:size=tiny --workdir=runs/imagegpt

size         | what                                                          | reaches, in
tiny         | 0.8M parameters, embedded emoji of 16×16 pixels, 64 colours   | 1.13 nats per pixel (shares of colours 3.30), three
             |                                                               | seeds; 376 s of CPU; probes in docs/vision.md
small        | 10M, CIFAR-10: python tools/make_cifar10.py data/cifar10      | not run
paper        | ImageGPT-S, 76M, ImageNet at 32×32                            | not run
paper_medium | ImageGPT-M, 455M                                              | not run
paper_large  | ImageGPT-L, 1.4B                                              | not run

Those of the paper have its shapes (§3.3), 512 colours, batch 128, a million steps of Adam with β 0.9 and 0.95, one epoch of
warm-up and cosine decay to 0, no dropout and no weight decay (§3.4). Of the learning rates that it tries, 1e-3 stands here;
which one it ended with is not in the paper. Otherwise than there, crops have half to all of a picture's area, the palette is
made of the data that is trained on, and weights begin as all of ours do.
"""

from ml_collections import ConfigDict

from configs import common
from tasks.imagegpt import Imagegpt
from unimodal.tokenizers import text

SHAPES = {
    "paper": dict(width=512, depth=24, heads=8),
    "paper_medium": dict(width=1024, depth=36, heads=8),
    "paper_large": dict(width=1536, depth=48, heads=16),
}
# Of the authors' GPT-2: norms that take no mean away, x·sigmoid(1.702 x).
LIKE_IGPT = dict(norm="rms", norm_epsilon=1e-5, activation="quick_gelu")


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "small": small}, paper=paper, shapes=SHAPES)


def tiny(config: ConfigDict) -> None:
    config.update(steps=1000, log_every=50, eval_every=500)
    config.optimizer.update(learning_rate=3e-3, warmup=100, b2=0.95)
    config.backbones.shared = common.backbone(width=128, depth=4, heads=4, scan=False, **LIKE_IGPT)
    config.tokenizers.text = common.every(text.Config, vocabulary=65, max_length=256, modality="image")
    config.tasks.imagegpt = common.every(Imagegpt, pixels=dict(count=64, flip=0.5), size=(16, 16), batch_size=16)
    for layer in (1, 2, 3, 4):
        config.evaluations[f"probe{layer}"] = dict(
            kind="linear_probe",
            source="embedded:emoji",
            tokenizer="text",
            layer=layer,
            causal=True,
            penalties=(1e-2,),
            pixels=dict(count=64),
            size=(16, 16),
        )


def small(config: ConfigDict) -> None:
    config.update(steps=20_000, log_every=100, eval_every=2_000, checkpoint_every=2_000, eval_limit=50)
    config.optimizer.update(learning_rate=3e-3, warmup=500, b2=0.95)
    config.backbones.shared = common.backbone(width=256, depth=12, heads=4, dtype="bfloat16", **LIKE_IGPT)
    config.tokenizers.text = common.every(text.Config, vocabulary=513, max_length=1024, modality="image")
    config.tasks.imagegpt = common.every(
        Imagegpt, source="array_record:data/cifar10", pixels=dict(flip=0.5), batch_size=128
    )


def paper(config: ConfigDict, size: str) -> None:
    config.update(steps=1_000_000, log_every=100, eval_every=10_000, checkpoint_every=10_000, eval_limit=100)
    config.optimizer.update(learning_rate=1e-3, warmup=10_000, final=0.0, b1=0.9, b2=0.95, weight_decay=0.0, clip=0.0)
    config.backbones.shared = common.backbone(**SHAPES[size], dtype="bfloat16", remat="full", **LIKE_IGPT)
    config.tokenizers.text = common.every(text.Config, vocabulary=513, max_length=1024, modality="image")
    config.tasks.imagegpt = common.every(
        Imagegpt,
        source="folder:data/imagenet",
        pixels=dict(crop=(0.5, 1.0), flip=0.5),
        batch_size=128,
    )
