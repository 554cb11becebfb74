"""Composed search without triplets: a picture becomes a word of a trained CLIP (Pic2Word, Saito 2023).

python launch.py train --config=configs/clip.py:size=tiny --workdir=runs/clip
python launch.py train --config=configs/pic2word.py:size=tiny --workdir=runs/pic2word
unimodal index runs/pic2word pictures/ --to=runs/pictures
unimodal search runs/pictures --image=cat.png --text="but blue"

size  | what                                                                | reaches, in
tiny  | 0.4M parameters over the CLIP of runs/clip, embedded emoji          | recall@1 0.003, below the picture alone (0.090):
      |                                                                     | that CLIP knows too few words; 60 s of CPU

The CLIP is that of a run of the recipe clip, in runs/clip (--config.init_from=DIR for another, ours or a published one of these
shapes), and stays as it is. As in the paper (§3.2) the network has three layers of 512 and ReLU, and pictures alone train it.
It is asked as composed search is (configs/composed.py), which learns from triplets.
"""

from ml_collections import ConfigDict

from configs import clip, common
from tasks.pic2word import Pic2word


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny})


def tiny(config: ConfigDict) -> None:
    clip.tiny(config)
    config.update(steps=500, eval_every=250, init_from="runs/clip")
    config.optimizer.freeze = (
        "tokenizers",
        "backbones",
        "heads.clip.image",
        "heads.clip.text",
        "heads.clip.temperature",
    )
    # The picture's word takes one of the places that the table of positions has.
    config.tasks.clip = common.every(Pic2word, name="clip", pictures=dict(crop=(0.7, 1.0)), texts=dict(length=31))
    config.tasks.clip.kind = "pic2word"
