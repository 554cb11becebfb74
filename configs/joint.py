"""Everything in one trunk: eight objectives over text, images and speech train the same weights (nine with DALL·E's).

python launch.py train --config=configs/joint.py:size=tiny --workdir=runs/joint
python launch.py train --config=configs/dvae.py:size=tiny --workdir=runs/dvae     # and then, with what it learned:
python launch.py train --config=configs/joint.py:size=tiny_dalle --workdir=runs/joint_dalle

size       | what                                                                          | reaches, in
tiny       | 0.9M parameters: GPT, BERT, ViT, MAE, CLIP, VirTex, wav2vec 2.0 and CTC       | not run to its end
tiny_dalle | the same and DALL·E's prior over the codes of runs/dvae                       | not run

The report ends with a table of how the tasks' gradients agree on the trunk. Other ways to share it: turns by temperature
(--config.turn_temperature=2), all tasks in every step (--config.schedule=sum), losses weighted by learned
uncertainty, gradients of one length, or gradients without what works against another task's (--config.balance=uncertainty,
equal or pcgrad; all with schedule=sum).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, dalle, demo, dvae
from tasks.ctc import Ctc
from tasks.dalle import Dalle
from tasks.mae import Mae
from tasks.virtex import Virtex


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, "tiny_dalle": tiny_dalle})


def tiny(config: ConfigDict) -> None:
    demo.five_tasks(config)
    config.update(steps=4000, affinity=4)
    config.backbones.decoder = common.backbone(width=64, depth=1, heads=4, scan=False)
    still: dict[str, Any] = dict(crop=(0.6, 1.0), shift=2)
    config.tasks.mae = common.every(Mae, images=dict(flip=0.5, **still), batch_size=32)
    config.tasks.virtex = common.every(Virtex, images=still, texts=dict(column="name", length=32), tied=False)
    config.tasks.ctc = common.every(
        Ctc, sounds=dict(segments="phrases", seconds=3.5), transcripts=dict(characters=80), batch_size=8
    )


def tiny_dalle(config: ConfigDict) -> None:
    tiny(config)
    pictures: dict[str, Any] = dict(images=dict(shift=1), texts=dict(column="name", phrases="keywords", length=32))
    config.tasks.dalle = common.every(Dalle, batch_size=16, **pictures)
    dalle.after(config, dvae.tiny)
