"""Pictures, words and voices in one trunk: who is shown a picture finds what is said of it, without a word written.

python tools/make_tuxpaint.py data/tuxpaint --language fr --also es,ro,ca --spoken
python launch.py train --config=configs/stamps.py:size=tiny --workdir=runs/stamps

size      | what                                                                 | reaches, in
tiny      | 0.9M parameters: three pairs by CLIP, captions by VirTex, transcripts | pictures by voice: recall@5 0.42 (chance 0.11), by words
          | by CTC                                                               | 0.40, voices by words 0.68; one seed, 24 minutes of CPU
tiny_TASK | the task of that name alone                                          | pictures by voice 0.20, voices by words 0.64, 500 steps

Tux Paint's stamps are pictures with a caption and a recording of it. Three tasks match two modalities each (pictures and
recordings, recordings and words, pictures and words), one writes what is seen, and one what is said. All share the tokenizers and
the trunk, and take turns. Recordings are read at 8 kHz and two seconds of them, in which four of five have room.
"""

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from configs import common, demo
from tasks.clip import Clip
from tasks.ctc import Ctc
from tasks.virtex import Virtex

SOURCE = "array_record:data/tuxpaint"
PAIRS = {"seen_heard": ("image", "audio"), "heard_read": ("audio", "text"), "seen_read": ("image", "text")}
TASKS = (*PAIRS, "virtex", "ctc")
LETTERS = " '-0123456789abcdefghijklmnopqrstuvwxyzàáâäçèéêëíîïñòóôùúûüăœșț"  # of French, Spanish, Romanian and Catalan


def get_config(argument: str = "") -> ConfigDict:
    return common.sized(argument, {"tiny": tiny, **{f"tiny_{task}": partial(alone, task=task) for task in TASKS}})


def alone(config: ConfigDict, task: str) -> None:
    """One of the tasks in the same trunk."""
    tiny(config)
    config.tasks = {task: config.tasks[task]}


def tiny(config: ConfigDict) -> None:
    config.update(schedule="alternate", steps=1500, log_every=100, eval_every=500)
    config.optimizer.update(learning_rate=1.5e-3, warmup=75)
    demo.trunk(config)
    config.backbones.shared.dropout, config.tokenizers.text.max_length = 0.1, 64
    pictures: dict[str, Any] = dict(crop=(0.6, 1.0), shift=2, jitter=(0.2, 0.2, 0.2))
    sounds, texts = dict(seconds=2.0, rate=8000), dict(length=64)
    for name, pair in PAIRS.items():
        config.tasks[name] = common.every(
            Clip,
            name=name,
            source=SOURCE,
            pair=pair,
            images=pictures,
            sounds=sounds,
            texts=texts,
            audio_tokenizer="audio",
            audio_backbone="shared",
        )
        config.tasks[name].kind = "clip"
    # Words are also read by the others, which would move a table that is both what is read and what is written.
    config.tasks.virtex = common.every(Virtex, source=SOURCE, images=pictures, texts=texts, tied=False)
    config.tasks.ctc = common.every(
        Ctc, source=SOURCE, sounds=sounds, transcripts=dict(characters=200, alphabet=LETTERS), batch_size=16
    )
