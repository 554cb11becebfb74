"""One backbone learns text, images and speech together, on a laptop.

python launch.py train --config=configs/demo.py --workdir=runs/demo
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from tasks.bert import Bert
from tasks.clip import Clip
from tasks.gpt import Gpt
from tasks.vit import Vit
from tasks.wav2vec2 import Wav2vec2
from unimodal.tokenizers import audio, image, text


def get_config() -> ConfigDict:
    config = common.base()
    five_tasks(config)
    return config


def trunk(config: ConfigDict) -> None:
    """Fill in a small backbone, and the tokenizers of all three modalities."""
    # Three layers, unrolled: on a CPU a fifth less time than scanned.
    config.backbones.shared = common.backbone(
        width=128, depth=3, heads=4, activation="gelu_tanh", rope_theta=10_000.0, scan=False
    )
    config.tokenizers = dict(
        text=common.every(text.Config, vocabulary=264, max_length=128),
        image=common.every(image.Config, image_size=(32, 32), patch=8, registers=1),
        audio=common.every(audio.Config, channels=64, position_kernel=16, position_groups=8),
    )


def five_tasks(config: ConfigDict) -> None:
    """Fill in the trunk, and the tasks that take turns with it."""
    trunk(config)
    config.update(schedule="alternate", steps=2000, log_every=25, eval_every=500, checkpoint_every=500, eval_limit=4)
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.warmup = 100
    emoji: dict[str, Any] = dict(crop=(0.6, 1.0), shift=2, jitter=(0.2, 0.2, 0.2))
    # Output weights of their own: three tasks read by one table, and whoever moves it would move what the others write.
    config.tasks = dict(
        gpt=common.every(Gpt, batch_size=8, weight=2.0, tied=False),
        bert=common.every(Bert, batch_size=8, weight=2.0, tied=False),
        vit=common.every(Vit, batch_size=32, images=dict(flip=0.5, **emoji)),
        # No mirror images: "left arrow" and "right arrow" are different words.
        clip=common.every(Clip, batch_size=32, images=emoji, texts=dict(phrases="keywords")),
        wav2vec2=common.every(
            Wav2vec2,
            batch_size=8,
            sounds=dict(seconds=1.0),
            codes=16,
            code_size=64,
            size=64,
            negatives=20,
            gumbel_decay=0.999,
            weight=2.0,
        ),
    )
