"""CLIP with a locked text tower, asked for classes that it has not been trained on (LiT, Zhai 2022; here the text is locked).

python launch.py train --config=configs/held_out.py --workdir=runs/held_out
"""

from ml_collections import ConfigDict

from configs import bert, common
from tasks.clip import Clip
from unimodal.tokenizers import image

DATA, WEIGHTS = "array_record:data/cifar10", "data/weights/minilm"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HELD_OUT = "cat,deer,ship,truck"
SAID = "a photo of a {}."  # as in the captions of tools/make_cifar10.py


def get_config(argument: str = "") -> ConfigDict:
    held_out = set((argument or HELD_OUT).split(","))
    if unknown := sorted(held_out - set(CLASSES)):
        raise ValueError(f"{unknown[0]!r} is none of the classes: {', '.join(CLASSES)}")
    if not 2 <= len(held_out) <= len(CLASSES) - 2:
        raise ValueError(f"hold out two classes or more, and leave two to train on, but {argument!r} does not")
    config = common.base()
    config.update(steps=400, log_every=50, eval_every=0, init_from=WEIGHTS)
    towers(config)
    seen, unseen = (tuple(c for c in CLASSES if (c in held_out) == out) for out in (False, True))
    config.tasks.clip = common.every(
        Clip,
        source=only(seen),
        images=dict(crop=(0.6, 1.0), flip=0.5),
        texts=dict(column="caption", encoder=WEIGHTS, length=8),
        batch_size=64,
        size=384,
        text_head=dict(project=False),
        image_backbone="image",
        text_backbone="text",
    )
    for name, classes in (("unseen", unseen), ("seen", seen)):
        config.evaluations[name] = dict(
            kind="zero_shot", source=only(classes), labels=dict(classes=classes), templates=(SAID,), batch_size=128
        )
    return config


def towers(config: ConfigDict) -> None:
    config.optimizer.update(learning_rate=2e-3, warmup=50, freeze=("tokenizers.text", "backbones.text"))
    config.backbones.image = common.backbone(width=128, depth=3, heads=4, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=4, init_std=0.5)
    bert.model(config, width=384, depth=6, heads=12)
    config.backbones.text = config.backbones.shared
    del config.backbones.shared
    # Locked in float32, and without dropout.
    config.backbones.text.update(dropout=0.0, dtype="float32", remat="none")
    config.tokenizers.text.dropout = 0.0


def only(classes: tuple[str, ...]) -> str:
    return f"{DATA}?only=label:{','.join(classes)}"
