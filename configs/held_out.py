"""CLIP whose text tower is published and locked, asked for classes that training has not seen (Zhai 2022; Socher 2013).

python tools/fetch_weights.py data/weights minilm
python tools/make_cifar10.py data/cifar10 --train=20000 --validation=5000
python launch.py train --config=configs/held_out.py:cat,truck --workdir=runs/held_out

held out   | what                          | reaches, in
cat,truck  | as without an argument        | accuracy 0.83 (nearest class mean of raw pixels 0.74, chance 0.5), three seeds; 108 s of CPU
frog,horse | drawn by lot                  | accuracy 0.46 (pixels 0.67, chance 0.5), three seeds: it misleads; 108 s of CPU

Any of CIFAR-10's classes can be held out, two or more; training sees the others. The text tower is the sentence encoder MiniLM-L6,
22.7M parameters, whose mean over tokens is the embedding of a text. Otherwise than in LiT, where the image tower is locked, here it
is the text tower; the image tower is a ViT of 0.7M that begins at random. docs/vision_language.md has each seed, and what failed.
"""

from ml_collections import ConfigDict

from configs import bert, common
from tasks.clip import Clip
from unimodal.tokenizers import image

DATA, WEIGHTS = "array_record:data/cifar10", "data/weights/minilm"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HELD_OUT = "cat,truck"
SAID = "a {}."  # as in the captions of tools/make_cifar10.py


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
        texts=dict(column="caption", encoder=WEIGHTS, length=5),
        batch_size=64,
        size=384,
        text_head=dict(project=False),
        image_backbone="image",
        text_backbone="text",
    )
    config.evaluations.unseen = dict(
        kind="zero_shot", source=only(unseen), labels=dict(classes=unseen), templates=(SAID,), batch_size=100
    )
    return config


def towers(config: ConfigDict) -> None:
    """A small ViT, and MiniLM, which stays as it is."""
    config.optimizer.update(learning_rate=1e-3, warmup=50, freeze=("tokenizers.text", "backbones.text"))
    config.backbones.image = common.backbone(width=128, depth=3, heads=4, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=8, init_std=0.5)
    bert.model(config, width=384, depth=6, heads=12)
    config.backbones.text = config.backbones.shared
    del config.backbones.shared
    # Locked in float32, and without dropout.
    config.backbones.text.update(dropout=0.0, dtype="float32", remat="none")
    config.tokenizers.text.dropout = 0.0


def only(classes: tuple[str, ...]) -> str:
    """The pictures of some classes, which keep their numbers."""
    return f"{DATA}?only=label:{','.join(classes)}"
