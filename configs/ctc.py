"""CTC: transcribe speech, from scratch or from the encoder that `configs/wav2vec2.py` trained (Baevski 2020).

python launch.py train --config=configs/ctc.py:size=tiny --workdir=runs/ctc
python launch.py train --config=configs/ctc.py:size=tiny --workdir=runs/ctc_pretrained --config.init_from=runs/wav2vec2

size        | what                                                                      | reaches, in
tiny        | 0.7M parameters, 305 phrases (9 minutes) of embedded Russian speech       | CER 0.62 (best constant 0.86), 5 minutes
small       | 18M, one's own recordings                                                 | not run
paper       | BASE with 29 characters, fine-tuned on 100 hours                          | not run
paper_large | LARGE, likewise                                                           | not run

Tiny is for trying out, on one speaker. Recordings without marks need tasks.ctc.sounds.segments= and seconds that hold them; what
does not fit is counted before the first step. More speakers take more steps before anything is heard: 1.4 hours of Czech by several
actors stay at the loss of a deaf model for 300 steps, and are below the best constant answer at 500 of 3,000, with the rate
at 1e-3, 200 steps of warm-up and no masks (the command is in docs/results.md). Two hundred steps on short lines
alone come no further (docs/speech.md).

Each size is the encoder of the same size there. Transcripts are spelt in lower case, without signs but hyphens and
apostrophes inside words; stress marks ('+') are dropped (tasks.ctc.transcripts.drop='' with .keep='+' keeps them). The
characters are those of the training transcripts.

Those of the paper fine-tune as it does on 100 hours of LibriSpeech (§4.3 and table 6): 50,000 steps, the rate warmed up in
the first tenth, held for four tenths and then linearly decayed; 1,600 s of speech in a batch (LARGE: 1,920); the
convolutions stay as they are, and the transformer for 10,000 steps; a twentieth of the frames begin a masked span of 10,
and 0.8 % of the channels one of 64. The rate of 3e-5 and its decay to a twentieth are the authors' published settings.
Utterances of more than 16 s are left out. Set init_from to a pre-trained workdir, or a published checkpoint; recordings
with transcripts belong into data/transcribed.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, wav2vec2
from tasks.ctc import Ctc

ENGLISH = " 'abcdefghijklmnopqrstuvwxyz"


def get_config(argument: str = "") -> ConfigDict:
    config = wav2vec2.get_config(argument)
    del config.tasks["wav2vec2"]
    sizes = {"tiny": tiny, "small": small, "paper": paper, "paper_large": paper_large}
    sizes[common.size_of(argument, *sizes)](config)
    return config


def tiny(config: ConfigDict) -> None:
    config.steps = 500
    config.optimizer.update(learning_rate=2e-3, warmup=50, final=0.05)
    config.backbones.audio.dropout = 0.1
    # Nine minutes are learned by heart in 600 steps; masks make it listen.
    masks = dict(mask=0.2, span=5, channel_mask=0.1, channel_span=16)
    config.tasks.ctc = common.every(
        Ctc,
        sounds=dict(segments="phrases", seconds=3.5),
        transcripts=dict(characters=80),
        backbone="audio",
        batch_size=16,
        beam=8,
        **masks,
    )


def small(config: ConfigDict) -> None:
    config.steps = 20_000
    config.optimizer.update(learning_rate=2e-4, warmup=2_000, hold=8_000, decay="linear", final=0.05)
    fine_tune(config, batch_size=32)


def paper(config: ConfigDict) -> None:
    config.steps = 50_000
    config.optimizer.update(learning_rate=3e-5, warmup=5_000, hold=20_000, decay="linear", final=0.05)
    config.optimizer.update(b2=0.98, epsilon=1e-8, weight_decay=0.0, clip=0.0)
    english = dict(alphabet=ENGLISH, characters=400)
    fine_tune(config, batch_size=100, transcripts=english, mask=0.5, channel_mask=0.5)
    config.optimizer.freeze += ("backbones.audio=10000",)


def paper_large(config: ConfigDict) -> None:
    paper(config)
    config.tasks.ctc.batch_size = 120


def fine_tune(config: ConfigDict, **given: Any) -> None:
    """Transcribe data/transcribed. The convolutions stay as pre-training left them, and cost no backward pass."""
    config.tasks.ctc = common.every(
        Ctc, source="array_record:data/transcribed", sounds=dict(seconds=16.0), backbone="audio", beam=16, **given
    )
    config.tokenizers.audio.feature_gradient = 0.0
    config.optimizer.freeze = ("tokenizers.audio.convolutions",)
