"""Composed search: find a picture by another one and words for what is different (Vo 2019).

python launch.py train --config=configs/composed.py:size=tiny --workdir=runs/composed
unimodal index runs/composed pictures/ --to=runs/pictures
unimodal search runs/pictures --image=cat.png --text="but blue"

size      | what                                                                | reaches, in
tiny      | 0.9M parameters, embedded emoji tinted, turned, scaled and lit      | recall@1 0.59 (best simpler query 0.39), three seeds,
          |                                                                     | 530 to 950 s of CPU
modifiers | the same model, emoji in other skin tones:                         | recall@1 0.69 (best simpler query 0.35), one seed,
          | python tools/fetch.py raw/ and tools/make_emoji_changes.py raw/     | 290 s of CPU
small     | 11M, CIFAR-10: python tools/make_cifar10.py data/cifar10            | not run

The changes are made of each picture (unimodal/data/augment/changes.py), but for `modifiers`, which are triplets. Evaluation asks
of pictures that training has not seen, in words that training has not said. Triplets of one's own, such as FashionIQ's, go into a
source with two pictures and a text: --config.tasks.composed.pictures.column=… --config.tasks.composed.pictures.changed=…
"""

from ml_collections import ConfigDict

from configs import common
from tasks.composed import Composed
from unimodal.tokenizers import image, text


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "modifiers": modifiers, "small": small})


def tiny(config: ConfigDict) -> None:
    config.update(steps=1000, log_every=50, eval_every=250)
    config.optimizer.update(learning_rate=2e-3, warmup=100)
    config.backbones.shared = common.backbone(width=128, depth=4, heads=4, rope_theta=10_000.0, scan=False)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=8, init_std=0.5)
    config.tokenizers.text = common.every(text.Config, vocabulary=264, max_length=32)
    # No mirror images and no jitter: turns and colours are what is asked for.
    config.tasks.composed = common.every(Composed, pictures=dict(crop=(0.7, 1.0)), batch_size=32)


def modifiers(config: ConfigDict) -> None:
    tiny(config)
    config.update(steps=600, eval_every=200)
    # A record has one change, so that its rivals of the same emoji are those that a batch happens to have: a larger one.
    config.tasks.composed = common.every(
        Composed,
        source="array_record:data/emoji_changes",
        pictures=dict(column="image", changed="changed", crop=(0.9, 1.0)),
        batch_size=96,
    )


def small(config: ConfigDict) -> None:
    config.update(steps=20_000, log_every=100, eval_every=2_000, checkpoint_every=2_000)
    config.optimizer.update(learning_rate=1e-3, warmup=1_000, final=0.0)
    config.backbones.shared = common.backbone(width=384, depth=6, heads=6, rope_theta=10_000.0)
    config.tokenizers.image = common.every(image.Config, image_size=(32, 32), patch=4, init_std=0.5)
    config.tokenizers.text = common.every(text.Config, vocabulary=264, max_length=32)
    source = "array_record:data/cifar10"
    config.tasks.composed = common.every(
        Composed, source=source, pictures=dict(crop=(0.5, 1.0)), batch_size=256, size=128
    )
